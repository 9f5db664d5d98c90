"""The one resize: the same for training, evaluation and the saved model."""

from collections.abc import Callable

import numpy as np

# What the guide fills with
_PAD_GREY = 128.0


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


def resized_in_steps(photos, size: int, how: str):
    """What `resized` gives, to the bit, in steps that every format knows.

    `resized` becomes one operation, ScaleAndTranslate, that neither ONNX nor TFLite has. It goes over the pixels that fall under each triangle one
    after the other, and so does this. Two matrix products would be shorter; but they add in another order, some values then fall on the other side of
    a half, and a single level in one value in ten thousand moves probabilities by up to 0.003.

    Args:
        photos: [b, h, w, 3] uint8 or float RGB in [0, 255].
        size: pixels a side.
        how: as in `resized`.

    Returns:
        [b, size, size, 3] float32, whole numbers.

    Source: the kernel of tf.raw_ops.ScaleAndTranslate with kernel_type="triangle" and antialias.
    """
    import tensorflow as tf

    pixels = tf.cast(photos, tf.float32)
    height, width = tf.shape(pixels)[1], tf.shape(pixels)[2]
    if how == "crop":
        side = tf.minimum(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[:, top : top + side, left : left + side]
    if how == "pad":
        side = tf.maximum(height, width)
        above, before = (side - height) // 2, (side - width) // 2
        pixels = tf.pad(pixels, [[0, 0], [above, above], [before, before], [0, 0]], constant_values=_PAD_GREY)
    return tf.round(_along(_along(pixels, 1, size), 2, size))


def _along(pixels, axis: int, size: int):
    """[b, h, w, 3] float32 -> the same with `size` instead of the axis' own length, not rounded."""
    import tensorflow as tf

    length = tf.shape(pixels)[axis]
    taps, places, weights = _triangles(length, size)
    shape = [1, size, 1, 1] if axis == 1 else [1, 1, size, 1]

    def add(tap, total):
        weight = tf.reshape(tf.gather(weights, tap), shape)
        return tap + 1, total + weight * tf.gather(pixels, tf.gather(places, tap), axis=axis)

    nothing = tf.zeros_like(tf.gather(pixels, tf.gather(places, 0), axis=axis))
    return tf.while_loop(lambda tap, total: tap < taps, add, (0, nothing))[1]


def _triangles(length, size: int):
    """For each of `size` pixels, which of `length` pixels go into it and by how much.

    Returns:
        The number of taps, [taps, size] int32 places, and [taps, size] float32 weights, whose sums over the taps are 1.
    """
    import tensorflow as tf

    # In just this way: length / size differs in the last bit
    step = _inverse(size / tf.cast(length, tf.float32))
    reach = tf.maximum(step, 1.0)
    taps = tf.minimum(2 * tf.cast(tf.math.ceil(reach), tf.int32) + 1, length)
    # [size]
    centres = (tf.range(size, dtype=tf.float32) + 0.5) * step
    first = tf.maximum(tf.cast(tf.math.ceil(centres - reach - 0.5), tf.int32), 0)
    last = tf.minimum(tf.cast(tf.math.floor(centres + reach - 0.5), tf.int32), length - 1)
    # [taps, size]
    places = first + tf.range(taps)[:, None]
    heights = tf.maximum(0.0, 1.0 - tf.abs((tf.cast(places, tf.float32) + 0.5 - centres) * _inverse(reach)))
    heights = tf.where(places <= last, heights, 0.0)
    sums = tf.cumsum(heights)[-1]
    return taps, tf.minimum(places, length - 1), heights * _inverse(sums)


def _inverse(values):
    """1 / values, rounded as IEEE 754 has it; the values are above 0. Of a plain 1.0 in a graph TensorFlow makes a Reciprocal, which is not."""
    import tensorflow as tf

    return tf.cast(values > 0.0, tf.float32) / values


def resizer(size: int, how: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function from one [h, w, 3] uint8 photo to [size, size, 3] uint8, that threads may share."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    def run(photo):
        return tf.cast(resized(photo[None], size, how)[0], tf.uint8)

    def resize(photo: np.ndarray) -> np.ndarray:
        return photo if photo.shape == (size, size, 3) else run(photo).numpy()

    return resize
