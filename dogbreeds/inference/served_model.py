"""The model that `mlflow models serve` runs: image files over HTTP in, class names and probabilities out.

MLflow stores this file with the model, together with the modules of this package that it imports
(`tracking/logged_model.py` lists them) and the network, and runs it where the rest of the project is not installed. So
this module imports MLflow at the top, unlike any other.
"""

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

from dogbreeds.core import prefetch
from dogbreeds.core.errors import UserError
from dogbreeds.core.text import digest_file
from dogbreeds.data.image import UnreadableImageError, declared_pixels, decode
from dogbreeds.inference.classifier import Classifier, load

# Batches that are decoded while the network computes another.
_PREFETCH_BATCHES = 1
# Pixels of a batch on a CPU, whose caches larger ones leave: EfficientNet-B0 at 224 px on two cores of an AMD EPYC
# predicts 24 images/s one by one, 28 in batches of 4, 22 of 8, and 15 of 32.
_CPU_BATCH_PIXELS = 4 * 224 * 224
# Environment variable in which MLflow takes other values of the model's config.
_CONFIG_ENV = "MLFLOW_PYFUNC_INFERENCE_CONFIG"
# Environment variable with the seconds after which MLflow's server answers HTTP 504; not set outside a server.
_TIMEOUT_ENV = "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"


class ServedModel(PythonModel):
    """A trained network as an MLflow model.

    Takes a table with a column `image`, each cell the bytes of a JPEG, PNG or WebP file. Returns the columns `class`
    (most probable class), `probability`, and `probabilities` of the `top` most probable classes by name.

    The model's config limits a request, so that one cannot occupy the server: `max_images` and `max_megapixels`.
    """

    def load_context(self, context: Any) -> None:
        """Load the network and compile it, before the first request arrives.

        Raises:
            MlflowException: the network is not the one that was logged, or a limit is not a whole number above 0.
        """
        config = context.model_config
        self._max_images = _limit(config, "max_images")
        self._max_megapixels = _limit(config, "max_megapixels")
        self._classifier = _load(Path(context.artifacts["network"]), config["network_digest"])
        size = self._classifier.image_size
        self._classifier.probabilities(np.full((1, size, size, 3), 128, np.uint8))
        # Shared by all requests: what is decoded at the same time bounds the memory.
        self._decoders = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Predict the images of a table, in batches.

        Args:
            context: unused.
            model_input: with a column `image` of encoded images.
            params: `top`, how many classes each prediction names.

        Raises:
            MlflowException: `top` is out of range, the request is beyond a limit, an image cannot be decoded, or the
                server has given the request up.
        """
        deadline = time.monotonic() + float(os.environ.get(_TIMEOUT_ENV, "inf"))
        top = self._checked_top(int((params or {})["top"]))
        files = [
            (encoded, f"Image {number} of {len(model_input)}") for number, encoded in enumerate(model_input["image"], 1)
        ]
        try:
            self._check_limits(files)
            rows = []
            for batch in self._batches(files):
                for probabilities in self._classifier.probabilities(batch):
                    rows.append(_prediction(self._classifier.class_names, probabilities, top))
                # The server has answered HTTP 504 and would let this go on, to nobody's use.
                if time.monotonic() > deadline and len(rows) < len(files):
                    raise _bad_request(f"The request took too long: {len(rows)} of {len(files)} images were predicted.")
        except UnreadableImageError as error:
            raise _bad_request(error.message_without_skip) from error
        return pd.DataFrame(rows, columns=["class", "probability", "probabilities"])

    def _checked_top(self, top: int) -> int:
        classes = len(self._classifier.class_names)
        if not 1 <= top <= classes:
            raise _bad_request(
                f"params.top was {top}. It must be a whole number from 1 to {classes}. Send"
                f' "params": {{"top": {min(3, classes)}}}, for example.'
            )
        return top

    def _check_limits(self, files: Sequence[tuple[Any, str]]) -> None:
        """Check the size of a request before anything is decoded: the headers declare the number of pixels."""
        if len(files) > self._max_images:
            raise _bad_request(
                f"The request has {len(files):,} images. At most {self._max_images:,} are allowed in one request. Send"
                " them in several requests."
            )
        pixels = 0
        for encoded, name in files:
            if not isinstance(encoded, bytes):
                raise _bad_request(
                    f"{name} arrived as {type(encoded).__name__}. Each must be the content of a file, encoded as"
                    ' base64, in JSON. Send {"dataframe_records": [{"image": "<base64>"}]}.'
                )
            pixels += declared_pixels(encoded, name)
            if pixels > 1_000_000 * self._max_megapixels:
                raise _bad_request(
                    f"The request has more than {self._max_megapixels:,} megapixels, up to {name}. At most"
                    f" {self._max_megapixels:,} are allowed in one request. Send the images in several requests, or"
                    " smaller ones."
                )

    def _batches(self, files: Sequence[tuple[bytes, str]]) -> Iterator[np.ndarray]:
        """Decode and resize images, and yield them in batches [b, size, size, 3] uint8."""
        decode_to_size = self._classifier.decode
        size = _batch_size(self._classifier)

        def decode_and_resize(file: tuple[bytes, str]) -> np.ndarray:
            return decode_to_size(functools.partial(decode, *file))

        ahead = (_PREFETCH_BATCHES + 1) * size
        with contextlib.closing(prefetch.map_ahead(decode_and_resize, files, ahead, self._decoders)) as images:
            while batch := list(itertools.islice(images, size)):
                yield np.stack(batch)


def _load(network: Path, logged_digest: str) -> Classifier:
    """Load the network, unless it is another than the one that was logged."""
    if digest_file(network) != logged_digest:
        raise _bad_request(
            f"{network} is not the network that was logged. A logged network must not be changed or replaced. Export"
            " the run again: python -m dogbreeds.export run=<the run's id>."
        )
    try:
        return load(network)
    except UserError as error:
        raise _bad_request(str(error)) from error


def _batch_size(classifier: Classifier) -> int:
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return classifier.batch_size()
    return max(1, _CPU_BATCH_PIXELS // classifier.image_size**2)


def _limit(config: dict[str, Any], name: str) -> int:
    value = config[name]
    if type(value) is not int or value < 1:
        raise _bad_request(
            f"{name} was {value!r}. It must be a whole number above 0. Set {_CONFIG_ENV}='{{\"{name}\": 1000}}', for"
            " example."
        )
    return value


def _prediction(class_names: Sequence[str], probabilities: np.ndarray, top: int) -> dict[str, Any]:
    order = (-probabilities).argsort(kind="stable")[:top]
    ranked = [(class_names[index], float(probabilities[index])) for index in order]
    name, probability = ranked[0]
    return {"class": name, "probability": probability, "probabilities": dict(ranked)}


def _bad_request(message: str) -> MlflowException:
    """Return the exception that MLflow's server answers with HTTP 400 and this message."""
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(ServedModel())
