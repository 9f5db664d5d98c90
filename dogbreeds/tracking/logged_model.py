"""Logged models: a trained network as a model that MLflow can serve, and its predictions through MLflow's scoring."""

import contextlib
import hashlib
import json
import logging
import shutil
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dogbreeds.core.console import log_levels_restored, quiet_stderr
from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import Spec, integer
from dogbreeds.core.text import digest_file
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import Record, short

_PACKAGE = Path(__file__).resolve().parents[1]
# Name of the logged model.
_LOGGED_MODEL_NAME = "dogbreeds"
# Requirements of the served model, pinned to the installed versions.
_REQUIREMENTS = ("mlflow", "tensorflow", "keras", "numpy", "pandas", "pillow", "h5py")
SERVED_MODEL = "inference/served_model.py"
# The modules of this package that `served_model` and its imports import, which are logged with it.
SHIPPED_MODULES = (
    "core/console.py",
    "core/errors.py",
    "core/former_names.py",
    "core/prefetch.py",
    "core/text.py",
    "data/decoder.py",
    "data/image.py",
    "data/resize.py",
    "inference/classifier.py",
    "models/blocks.py",
    "models/custom_layers.py",
    "models/network.py",
    "models/onnx_conversion.py",
    "models/pooling.py",
    "models/precision.py",
    "models/replicas.py",
    "models/runtime.py",
)
# Default number of classes in a prediction: MLflow's parameter `top`, or all classes where there are fewer.
_TOP = 5


@dataclass(frozen=True, kw_only=True)
class ServingLimits(Spec):
    """Limits of a served model on one request. Beyond them it answers HTTP 400.

    Attributes:
        max_images: images in a request.
        max_megapixels: megapixels of all its images together, as their headers declare them.
    """

    group = "serving"
    max_images: int = integer(at_least=1, example=1000)
    max_megapixels: int = integer(at_least=1, example=500)


def default_top(num_classes: int) -> int:
    """Return how many classes a prediction names where the request does not say."""
    return min(_TOP, num_classes)


def log_model(
    tracking: Mlflow,
    record: Record,
    network: Path,
    example: bytes,
    num_classes: int,
    limits: ServingLimits,
    packages: Sequence[str] = (),
) -> str:
    """Log a run's network as a model that MLflow can serve, unless it is logged already.

    The run's status and end time do not change.

    Args:
        tracking: where the run is recorded.
        record: the run.
        network: its `.keras` file.
        example: content of an image file, which is logged as the input example.
        num_classes: number of the network's classes.
        limits: of the served model on one request.
        packages: that the network needs, besides those that every network does.

    Returns:
        Id of the logged model.
    """
    client = tracking.connect()[0]
    model_config = {"network_digest": digest_file(network), **asdict(limits)}
    requirements = (*_REQUIREMENTS, *packages)
    digest = _digest(model_config, requirements)
    for logged in client.search_logged_models([record.experiment_id], f"source_run_id = '{record.run_id}'"):
        if logged.tags.get("digest") == digest and str(logged.status) == "READY":
            return logged.model_id
    import mlflow
    from mlflow.models import Model

    with tracking.user_errors(), _quiet(), _restored_path(), tempfile.TemporaryDirectory() as folder:
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
            python_model=str(_PACKAGE / SERVED_MODEL),
            artifacts={"network": str(network)},
            code_paths=[str(_copy_shipped_modules(Path(folder)))],
            pip_requirements=[f"{name}=={version(name)}" for name in requirements],
            model_config=model_config,
            **_signature(example, num_classes),
        )
        return model.model_id


def _signature(example: bytes, num_classes: int) -> dict[str, Any]:
    """Return the signature and the input example, as arguments of `Model.log`."""
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Map

    outputs = [
        ColSpec(DataType.string, "class"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Map(DataType.double), "probabilities"),
    ]
    signature = ModelSignature(
        Schema([ColSpec(DataType.binary, "image")]),
        Schema(outputs),
        ParamSchema([ParamSpec("top", DataType.long, default_top(num_classes))]),
    )
    return {"signature": signature, "input_example": pd.DataFrame({"image": [example]})}


def _copy_shipped_modules(folder: Path) -> Path:
    """Copy the modules that the served model imports to a package in a folder; return the package."""
    package = folder / "dogbreeds"
    for name in SHIPPED_MODULES:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_PACKAGE / name, package / name)
    for module_folder in (package, *{(package / name).parent for name in SHIPPED_MODULES}):
        (module_folder / "__init__.py").touch()
    return package


def _digest(model_config: dict[str, Any], requirements: Sequence[str]) -> str:
    """Return a digest of all that is logged: the network and the limits, the code, and the pinned versions."""
    parts = [
        json.dumps(model_config, sort_keys=True).encode(),
        *((_PACKAGE / name).read_bytes() for name in (SERVED_MODEL, *SHIPPED_MODULES)),
        *(version(name).encode() for name in requirements),
    ]
    return hashlib.blake2b(b"".join(hashlib.blake2b(part).digest() for part in parts), digest_size=16).hexdigest()


def ask(tracking: Mlflow, record: Record, model_id: str, images: Sequence[bytes]) -> list[dict[str, Any]]:
    """Ask a logged model about images through MLflow's scoring route, as an HTTP request without parameters does.

    Args:
        tracking: where the model is logged.
        record: its run.
        model_id: id of the logged model.
        images: contents of image files.

    Returns:
        The prediction of each image, by column.

    Raises:
        UserError: the model cannot be loaded, or refuses the request.
    """
    client = tracking.connect()[0]
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc import scoring_server

    request = json.dumps({"dataframe_records": [{"image": b64encode(image).decode()} for image in images]})
    with _quiet(), _restored_path(), tempfile.TemporaryDirectory() as folder:
        files = client.wrap(mlflow.artifacts).download_artifacts(f"models:/{model_id}", dst_path=folder)
        try:
            model = mlflow.pyfunc.load_model(files)
            response = scoring_server.invocations(request, "application/json", model, model.metadata.get_input_schema())
        except MlflowException as error:
            raise UserError(
                f"The served model of run {short(record.run_id)} does not answer"
                f" ({' '.join(error.message.split())[-300:]}). It must answer a request before it is registered. Delete"
                f" the logged model {model_id} in MLflow, and export the run again."
            ) from error
    return json.loads(response.response)["predictions"]


@contextlib.contextmanager
def _restored_path() -> Iterator[None]:
    """Restore Python's path after the body: MLflow puts the code of a model that it loads in front of it."""
    path = sys.path
    try:
        yield
    finally:
        sys.path = path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the hints of MLflow and the log lines of TensorFlow in the body."""
    with log_levels_restored("mlflow", "tensorflow"), quiet_stderr():
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        yield
