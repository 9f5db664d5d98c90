"""What `mlflow models serve` runs: photos over HTTP in, breeds out.

MLflow keeps this file itself, with `data/image.py`, what that imports and the network beside it, and runs it where nothing else of the project is.
So it is the one module that imports MLflow at its top, and it must import no more of the package than those.
"""

from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

from dogbreeds.data.image import Unreadable, decode


class Photos(PythonModel):
    """A table with a column `photo`, each a whole JPEG, PNG or WebP file -> breed, its probability, and those of the first `top` breeds."""

    def load_context(self, context: Any) -> None:
        import keras
        import numpy as np
        import tensorflow as tf

        whole = keras.models.load_model(context.artifacts["network"], compile=False, safe_mode=True)
        self._class_names = [str(name) for name in whole.get_layer("breed").get_vocabulary()]
        signature = [tf.TensorSpec([None, None, None, 3], tf.uint8)]
        self._ask = tf.function(
            lambda photos: whole(photos, training=False)["probabilities"], input_signature=signature
        )
        # Compiles it now, and not while the first person waits
        self._ask(np.full((1, 32, 32, 3), 128, np.uint8))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        top, classes = int((params or {})["top"]), len(self._class_names)
        if not 1 <= top <= classes:
            raise _refusal(
                f'params.top was {top}. It must be a whole number from 1 to {classes}. Send "params": {{"top": 3}}, for'
                " example."
            )
        photos = model_input["photo"]
        return pd.DataFrame(
            [self._said(encoded, f"Photo {number} of {len(photos)}", top) for number, encoded in enumerate(photos, 1)]
        )

    def _said(self, encoded: bytes, name: str, top: int) -> dict[str, Any]:
        try:
            pixels = decode(encoded, name)
        except Unreadable as error:
            raise _refusal(error.plain) from error
        # Photos of their own sizes: one at a time
        scores = self._ask(pixels[None]).numpy()[0]
        ranked = [(self._class_names[place], float(scores[place])) for place in (-scores).argsort(kind="stable")[:top]]
        breed, probability = ranked[0]
        return {"breed": breed, "probability": probability, "probabilities": dict(ranked)}


def _refusal(said: str) -> MlflowException:
    """Becomes HTTP 400, with these sentences."""
    return MlflowException(said, error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(Photos())
