"""Networks that are handed over by MLflow: logged so that it can serve them, and registered under a name whose alias points to the best.

With `tracking` and `lifecycle` all that knows of MLflow.
"""

import contextlib
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogbreeds.core.console import quiet_stderr
from dogbreeds.core.errors import UserError
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import Record

if TYPE_CHECKING:
    import mlflow

_PACKAGE = Path(__file__).resolve().parents[1]
# Of the logged model, and of the run's artifacts in other formats
NAME, FOLDER = "dogbreeds", "exported"
# Wherever it is served, in these very versions
_NEEDS = ("mlflow", "tensorflow", "keras", "numpy", "pandas", "pillow", "h5py")
_SERVED = "inference/served_model.py"
# Of this package: all that `served_model` imports
_SHIPPED = ("core/errors.py", "core/text.py", "data/image.py")
# Breeds that an answer names where the question does not say
_TOP = 5


@dataclass(frozen=True)
class Version:
    """A registered network.

    Attributes:
        name, number: of the registered model, and of this version of it.
        run_id: the attempt that trained it.
    """

    name: str
    number: str
    run_id: str


def log(tracking: Mlflow, record: Record, network: Path, example: bytes) -> str:
    """Logs a run's network as a model that MLflow can serve, unless that has been done; the run itself stays as it ended.

    Args:
        tracking: where the run is recorded.
        record: the run.
        network: its `.keras` file.
        example: a photo's file, which is asked about before anything is logged, and kept to show what can be sent.

    Returns:
        The logged model's id.
    """
    client = _client(tracking)
    digest = _digest(network)
    for known in client.search_logged_models([record.experiment_id], f"source_run_id = '{record.run_id}'"):
        if known.tags.get("digest") == digest and str(known.status) == "READY":
            return known.model_id
    import mlflow
    from mlflow.models import Model

    with tracking.reached(), _quiet(), tempfile.TemporaryDirectory() as folder:
        tags = {"digest": digest, "run": record.run_id}
        begun = mlflow.initialize_logged_model(NAME, record.run_id, tags, experiment_id=record.experiment_id)
        Model.log(
            None,
            name=NAME,
            flavor=mlflow.pyfunc,
            run_id=record.run_id,
            model_id=begun.model_id,
            python_model=str(_PACKAGE / _SERVED),
            artifacts={"network": str(network)},
            code_paths=[str(_shipped(Path(folder)))],
            pip_requirements=[f"{name}=={version(name)}" for name in _NEEDS],
            **_signature(example),
        )
        return begun.model_id


def _signature(example: bytes) -> dict[str, Any]:
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Map

    outputs = [
        ColSpec(DataType.string, "breed"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Map(DataType.double), "probabilities"),
    ]
    signature = ModelSignature(
        Schema([ColSpec(DataType.binary, "photo")]),
        Schema(outputs),
        ParamSchema([ParamSpec("top", DataType.long, _TOP)]),
    )
    return {"signature": signature, "input_example": pd.DataFrame({"photo": [example]})}


def _shipped(folder: Path) -> Path:
    package = folder / "dogbreeds"
    for name in _SHIPPED:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_PACKAGE / name, package / name)
    for place in (package, *{(package / name).parent for name in _SHIPPED}):
        (place / "__init__.py").touch()
    return package


def _digest(network: Path) -> str:
    """Of all that is logged: the network, and the code and versions that it is asked with."""
    parts = [
        network.read_bytes(),
        *((_PACKAGE / name).read_bytes() for name in (_SERVED, *_SHIPPED)),
        *(version(name).encode() for name in _NEEDS),
    ]
    return hashlib.blake2b(b"".join(hashlib.blake2b(part).digest() for part in parts), digest_size=16).hexdigest()


def champion(tracking: Mlflow, name: str, alias: str) -> Version | None:
    """The version that an alias of a registered model points to, if there is one."""
    client = _client(tracking)
    for model in client.search_registered_models(_is_named(name)):
        number = dict(model.aliases).get(alias)
        if number is not None:
            return Version(name, str(number), client.get_model_version(name, str(number)).run_id)
    return None


def promote(
    tracking: Mlflow, name: str, alias: str, before: Version | None, record: Record, model_id: str, tags: dict[str, str]
) -> Version:
    """Registers a logged model and points the alias to it; that comes last, so that whatever cuts this off leaves the alias where it was.

    A version that an earlier command made, and did not come to point to, is taken.

    Args:
        before: what the alias pointed to when the model was found good enough.

    Raises:
        UserError: where it points to another by now.
    """
    client = _client(tracking)
    if not client.search_registered_models(_is_named(name)):
        client.create_registered_model(name, description="Photos of dogs in, breeds out.")
    source = f"models:/{model_id}"
    made = [
        each
        for each in client.search_model_versions(f"{_is_named(name)} and run_id = '{record.run_id}'")
        if each.source == source
    ]
    number = str(
        made[0].version if made else client.create_model_version(name, source, record.run_id, model_id=model_id).version
    )
    for key, value in tags.items():
        client.set_model_version_tag(name, number, key, value)
    if champion(tracking, name, alias) != before:
        raise UserError(
            f"{name}@{alias} came to point to another version meanwhile. A model must beat the one that it points to."
            " Run the same command again."
        )
    client.set_registered_model_alias(name, alias, number)
    return Version(name, number, record.run_id)


def _is_named(name: str) -> str:
    """MLflow's search knows of no escapes, and of two kinds of quotes."""
    quote = '"' if "'" in name else "'"
    return f"name = {quote}{name}{quote}"


def _client(tracking: Mlflow) -> "mlflow.MlflowClient":
    return tracking.connect()[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back MLflow's hints, and TensorFlow's remarks."""
    loggers: Sequence[logging.Logger] = [logging.getLogger(name) for name in ("mlflow", "tensorflow")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with quiet_stderr():
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
