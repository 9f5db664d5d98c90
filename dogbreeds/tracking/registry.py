"""MLflow's model registry: log a trained network so that MLflow can serve it, register it, and move its alias."""

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
# Name of the logged model.
_LOGGED_MODEL_NAME = "dogbreeds"
# Folder of the exported formats among a run's artifacts.
EXPORT_FOLDER = "exported"
# Requirements of the served model, pinned to the installed versions.
_REQUIREMENTS = ("mlflow", "tensorflow", "keras", "numpy", "pandas", "pillow", "h5py")
_SERVED_MODEL = "inference/served_model.py"
# The modules of this package that `served_model` imports, which are logged with it.
_SHIPPED_MODULES = ("core/errors.py", "core/text.py", "data/image.py")
# Default number of classes in an answer: MLflow's parameter `top`.
_TOP = 5


@dataclass(frozen=True)
class Version:
    """Version of a registered model.

    Attributes:
        name: name of the registered model.
        number: version number.
        run_id: run that trained it.
    """

    name: str
    number: str
    run_id: str


def log_model(tracking: Mlflow, record: Record, network: Path, example: bytes) -> str:
    """Log a run's network as a model that MLflow can serve, unless it is logged already.

    The run's status and end time do not change.

    Args:
        tracking: where the run is recorded.
        record: the run.
        network: its `.keras` file.
        example: content of an image file. It is predicted before anything is logged, and logged as the input example.

    Returns:
        Id of the logged model.
    """
    client = _client(tracking)
    digest = _digest(network)
    for logged in client.search_logged_models([record.experiment_id], f"source_run_id = '{record.run_id}'"):
        if logged.tags.get("digest") == digest and str(logged.status) == "READY":
            return logged.model_id
    import mlflow
    from mlflow.models import Model

    with tracking.user_errors(), _quiet(), tempfile.TemporaryDirectory() as folder:
        tags = {"digest": digest, "run": record.run_id}
        model = mlflow.initialize_logged_model(
            _LOGGED_MODEL_NAME, record.run_id, tags, experiment_id=record.experiment_id
        )
        Model.log(
            None,
            name=_LOGGED_MODEL_NAME,
            flavor=mlflow.pyfunc,
            run_id=record.run_id,
            model_id=model.model_id,
            python_model=str(_PACKAGE / _SERVED_MODEL),
            artifacts={"network": str(network)},
            code_paths=[str(_copy_shipped_modules(Path(folder)))],
            pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
            **_signature(example),
        )
        return model.model_id


def _signature(example: bytes) -> dict[str, Any]:
    """Return the signature and the input example, as arguments of `Model.log`."""
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


def _copy_shipped_modules(folder: Path) -> Path:
    """Copy the modules that the served model imports to a package in a folder; return the package."""
    package = folder / "dogbreeds"
    for name in _SHIPPED_MODULES:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_PACKAGE / name, package / name)
    for module_folder in (package, *{(package / name).parent for name in _SHIPPED_MODULES}):
        (module_folder / "__init__.py").touch()
    return package


def _digest(network: Path) -> str:
    """Return a digest of all that is logged: the network, the code that serves it, and the pinned versions."""
    parts = [
        network.read_bytes(),
        *((_PACKAGE / name).read_bytes() for name in (_SERVED_MODEL, *_SHIPPED_MODULES)),
        *(version(name).encode() for name in _REQUIREMENTS),
    ]
    return hashlib.blake2b(b"".join(hashlib.blake2b(part).digest() for part in parts), digest_size=16).hexdigest()


def version_by_alias(tracking: Mlflow, name: str, alias: str) -> Version | None:
    """Return the version of a registered model that an alias points to, if any.

    Args:
        tracking: store with the registry.
        name: name of the registered model.
        alias: the alias, such as `champion`.
    """
    client = _client(tracking)
    for model in client.search_registered_models(_name_condition(name)):
        number = dict(model.aliases).get(alias)
        if number is not None:
            return Version(name, str(number), client.get_model_version(name, str(number)).run_id)
    return None


def promote(
    tracking: Mlflow,
    name: str,
    alias: str,
    before: Version | None,
    record: Record,
    model_id: str,
    tags: dict[str, str],
) -> Version:
    """Register a logged model and point the alias to it.

    The alias moves last, so that an interruption leaves it where it was. A version that an interrupted command has
    registered is reused.

    Args:
        tracking: store with the registry.
        name: name of the registered model.
        alias: the alias to move.
        before: version that the alias pointed to when the model passed the gate.
        record: run that trained the model.
        model_id: id of the logged model.
        tags: tags of the version.

    Raises:
        UserError: the alias points to another version by now.
    """
    client = _client(tracking)
    if not client.search_registered_models(_name_condition(name)):
        client.create_registered_model(
            name, description="Image classifier: takes images of any size, returns class names and probabilities."
        )
    source = f"models:/{model_id}"
    registered = [
        found
        for found in client.search_model_versions(f"{_name_condition(name)} and run_id = '{record.run_id}'")
        if found.source == source
    ]
    model_version = (
        registered[0] if registered else client.create_model_version(name, source, record.run_id, model_id=model_id)
    )
    number = str(model_version.version)
    for key, value in tags.items():
        client.set_model_version_tag(name, number, key, value)
    if version_by_alias(tracking, name, alias) != before:
        raise UserError(
            f"{name}@{alias} was moved to another version by another command meanwhile. A model must beat the version"
            " that the alias points to. Run the same command again."
        )
    client.set_registered_model_alias(name, alias, number)
    return Version(name, number, record.run_id)


def _name_condition(name: str) -> str:
    """Return a search condition for a name. MLflow's syntax has no escapes, but two kinds of quotes."""
    quote = '"' if "'" in name else "'"
    return f"name = {quote}{name}{quote}"


def _client(tracking: Mlflow) -> "mlflow.MlflowClient":
    return tracking.connect()[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the hints of MLflow and the log lines of TensorFlow in the body."""
    loggers: Sequence[logging.Logger] = [logging.getLogger(name) for name in ("mlflow", "tensorflow")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with quiet_stderr():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
