"""The model that `mlflow models serve` runs: image files over HTTP in, class names and probabilities out.

MLflow stores this file with the model, together with `data/image.py`, the modules that imports, and the network, and
runs it where the rest of the project is not installed. So this module imports MLflow at the top, unlike any other, and
must import no other module of the package.
"""

from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

from dogbreeds.data.image import UnreadableImageError, decode


class ServedModel(PythonModel):
    """A trained network as an MLflow model.

    Takes a table with a column `photo`, each cell the bytes of a JPEG, PNG or WebP file. Returns the columns `breed`
    (most probable class), `probability`, and `probabilities` of the `top` most probable classes by name.
    """

    def load_context(self, context: Any) -> None:
        """Load the network and compile it, before the first request arrives."""
        import keras
        import numpy as np
        import tensorflow as tf

        model = keras.models.load_model(context.artifacts["network"], compile=False, safe_mode=True)
        self._class_names = [str(name) for name in model.get_layer("breed").get_vocabulary()]
        signature = [tf.TensorSpec([None, None, None, 3], tf.uint8)]
        self._probabilities = tf.function(
            lambda images: model(images, training=False)["probabilities"], input_signature=signature
        )
        self._probabilities(np.full((1, 32, 32, 3), 128, np.uint8))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Predict each image of a table.

        Args:
            context: unused.
            model_input: with a column `photo` of encoded images.
            params: `top`, how many classes each prediction names.

        Raises:
            MlflowException: `top` is out of range, or an image cannot be decoded.
        """
        top = int((params or {})["top"])
        classes = len(self._class_names)
        if not 1 <= top <= classes:
            raise _bad_request(
                f'params.top was {top}. It must be a whole number from 1 to {classes}. Send "params": {{"top": 3}}, for'
                " example."
            )
        files = model_input["photo"]
        return pd.DataFrame(
            [self._prediction(encoded, f"Image {n} of {len(files)}", top) for n, encoded in enumerate(files, 1)]
        )

    def _prediction(self, encoded: bytes, name: str, top: int) -> dict[str, Any]:
        try:
            pixels = decode(encoded, name)
        except UnreadableImageError as error:
            raise _bad_request(error.message_without_skip) from error
        # One image at a time, because images differ in size.
        probabilities = self._probabilities(pixels[None]).numpy()[0]
        order = (-probabilities).argsort(kind="stable")[:top]
        ranked = [(self._class_names[index], float(probabilities[index])) for index in order]
        breed, probability = ranked[0]
        return {"breed": breed, "probability": probability, "probabilities": dict(ranked)}


def _bad_request(message: str) -> MlflowException:
    """Return the exception that MLflow's server answers with HTTP 400 and this message."""
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(ServedModel())
