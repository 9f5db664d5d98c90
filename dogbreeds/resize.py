"""The one resize: the same for training, evaluation and the saved model."""

from collections.abc import Callable

import numpy as np

_PAD_GREY = 128.0  # what the guide fills with


def resized(photos, size: int, how: str):
    """[b, h, w, 3] RGB in [0, 255] of any size -> [b, size, size, 3] float32, whole numbers. Works on tensors and in a Keras graph.

    Args:
        photos: uint8 or float.
        size: pixels a side.
        how: `stretch` (the aspect is not kept), `pad` (with grey), or `crop` (the middle).
    """
    import keras

    # Not the Resizing layer: its call defaults to training=True, which Keras then takes for the whole model when it is called without
    # the argument, so that a saved network would drop out and move its BatchNorm statistics while predicting.
    resized = keras.ops.image.resize(
        keras.ops.cast(photos, "float32"),
        (size, size),
        interpolation="bilinear",
        antialias=True,
        crop_to_aspect_ratio=how == "crop",
        pad_to_aspect_ratio=how == "pad",
        fill_value=_PAD_GREY,
    )
    # Rounded, because photos are kept as uint8: the saved model must see just what training saw.
    return keras.ops.round(resized)


def resizer(size: int, how: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function from one [h, w, 3] uint8 photo to [size, size, 3] uint8, that threads may share."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    def run(photo):
        return tf.cast(resized(photo[None], size, how)[0], tf.uint8)

    def resize(photo: np.ndarray) -> np.ndarray:
        return photo if photo.shape == (size, size, 3) else run(photo).numpy()

    return resize
