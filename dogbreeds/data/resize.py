"""The resize operation of the saved network, and the same for exported ones."""

from collections.abc import Callable

import numpy as np

# Grey level of the padding. Source: the guide.
PAD_GREY = 128


def resize_images(images, size: int, mode: str):
    """Resize a batch of images to squares. Works on tensors and in a Keras graph.

    Args:
        images: [b, h, w, 3] uint8 or float RGB in [0, 255], of any size.
        size: pixels a side.
        mode: `stretch` (ignores the aspect ratio), `pad` (with grey), or `crop` (to the centre).

    Returns:
        [b, size, size, 3] float32, whole numbers.
    """
    import keras

    # Not the Resizing layer: its `call` defaults to training=True, which Keras then uses for the whole model if that is
    # called without the argument. A saved network would apply dropout and update BatchNorm while predicting.
    resized = keras.ops.image.resize(
        keras.ops.cast(images, "float32"),
        (size, size),
        interpolation="bilinear",
        antialias=True,
        crop_to_aspect_ratio=mode == "crop",
        pad_to_aspect_ratio=mode == "pad",
        fill_value=float(PAD_GREY),
    )
    # Rounded, because images are cached as uint8, and the saved model must see what training saw.
    return keras.ops.round(resized)


def resize_images_portable(images, size: int, mode: str):
    """Resize like `resize_images`, bit for bit, with operations that every export format has.

    `resize_images` becomes one operation, ScaleAndTranslate, that neither ONNX nor TFLite has. It adds the pixels under
    each triangle one after the other, and so does this function. Two matrix products would be shorter, but they add in
    another order: some values then round to the other side, and a difference of one level in one value in ten thousand
    moves probabilities by up to 0.003.

    Args:
        images: [b, h, w, 3] uint8 or float RGB in [0, 255].
        size: pixels a side.
        mode: as in `resize_images`.

    Returns:
        [b, size, size, 3] float32, whole numbers.

    Source: the kernel of tf.raw_ops.ScaleAndTranslate with kernel_type="triangle" and antialias.
    """
    import tensorflow as tf

    pixels = tf.cast(images, tf.float32)
    height, width = tf.shape(pixels)[1], tf.shape(pixels)[2]
    if mode == "crop":
        side = tf.minimum(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[:, top : top + side, left : left + side]
    if mode == "pad":
        side = tf.maximum(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        pixels = tf.pad(pixels, [[0, 0], [top, top], [left, left], [0, 0]], constant_values=float(PAD_GREY))
    return tf.round(_resize_axis(_resize_axis(pixels, 1, size), 2, size))


def _resize_axis(pixels, axis: int, size: int):
    """Resize one axis of [b, h, w, 3] float32 to `size`, without rounding."""
    import tensorflow as tf

    length = tf.shape(pixels)[axis]
    num_taps, positions, weights = _triangle_taps(length, size)
    shape = [1, size, 1, 1] if axis == 1 else [1, 1, size, 1]

    def add_tap(tap, total):
        weight = tf.reshape(tf.gather(weights, tap), shape)
        return tap + 1, total + weight * tf.gather(pixels, tf.gather(positions, tap), axis=axis)

    zeros = tf.zeros_like(tf.gather(pixels, tf.gather(positions, 0), axis=axis))
    return tf.while_loop(lambda tap, total: tap < num_taps, add_tap, (0, zeros))[1]


def _triangle_taps(length, size: int):
    """Compute which of `length` input pixels contribute to each of `size` output pixels, and with which weight.

    Returns:
        The number of taps, [taps, size] int32 input positions, and [taps, size] float32 weights, which sum to 1 over
        the taps.
    """
    import tensorflow as tf

    # Exactly as the kernel computes it: length / size differs in the last bit.
    step = _inverse(size / tf.cast(length, tf.float32))
    radius = tf.maximum(step, 1.0)
    num_taps = tf.minimum(2 * tf.cast(tf.math.ceil(radius), tf.int32) + 1, length)
    # [size]
    centres = (tf.range(size, dtype=tf.float32) + 0.5) * step
    first = tf.maximum(tf.cast(tf.math.ceil(centres - radius - 0.5), tf.int32), 0)
    last = tf.minimum(tf.cast(tf.math.floor(centres + radius - 0.5), tf.int32), length - 1)
    # [taps, size]
    positions = first + tf.range(num_taps)[:, None]
    heights = tf.maximum(0.0, 1.0 - tf.abs((tf.cast(positions, tf.float32) + 0.5 - centres) * _inverse(radius)))
    heights = tf.where(positions <= last, heights, 0.0)
    sums = tf.cumsum(heights)[-1]
    return num_taps, tf.minimum(positions, length - 1), heights * _inverse(sums)


def _inverse(values):
    """Compute 1 / values for values above 0, rounded as IEEE 754 requires.

    A constant 1.0 in a graph would become TensorFlow's Reciprocal, which is not rounded so.
    """
    import tensorflow as tf

    return tf.cast(values > 0.0, tf.float32) / values


def resizer(size: int, mode: str) -> Callable[[np.ndarray], np.ndarray]:
    """Create a thread-safe function that resizes one [h, w, 3] uint8 image to [size, size, 3] uint8."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    def resize_graph(image):
        return tf.cast(resize_images(image[None], size, mode)[0], tf.uint8)

    def resize(image: np.ndarray) -> np.ndarray:
        return image if image.shape == (size, size, 3) else resize_graph(image).numpy()

    return resize
