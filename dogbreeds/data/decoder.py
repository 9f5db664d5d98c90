"""Decoders: from an image's loader to pixels at the size of a network.

Pillow resizes as the saved network does, with an antialiased triangle filter, but in fixed point and with rows rounded
before columns: a value differs by one grey level at most. It needs a third of the time, because it works on the pixels
where it has decoded them.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dogbreeds.core.former_names import IMPLIED_PARAMS
from dogbreeds.data.image import EncodedImage, ImageLoader, make_upright, open_image, orientation_of, to_rgb
from dogbreeds.data.resize import PAD_GREY, resizer

if TYPE_CHECKING:
    from PIL import Image

# Pillow decodes and resizes.
PILLOW = "pillow"
# As `PILLOW`, and JPEG files far larger than needed are decoded at a half, a quarter or an eighth of their size.
PILLOW_SCALED = "pillow_scaled"
# Pillow decodes, and TensorFlow resizes with the operation of the saved network.
TENSORFLOW = "tensorflow"
DECODERS = (PILLOW, PILLOW_SCALED, TENSORFLOW)
# A scaled decode has at least so many times the pixels a side that are needed. With 1, a value is off by up to 37.
_SCALED_MARGIN = 2
# EXIF orientations of images whose columns, and whose rows, are stored in reverse.
_COLUMNS_REVERSED = (2, 3, 7, 8)
_ROWS_REVERSED = (3, 4, 6, 7)

# Left, top, right and bottom edge, in pixels.
_Box = tuple[float, float, float, float]


def decoder_identity(decoder: str) -> dict[str, str]:
    """Return what a decoder adds to the identity of what is computed from its pixels; nothing for the implied one."""
    return {} if decoder == IMPLIED_PARAMS["data.decoder"] else {"decoder": decoder}


def decoder_to_size(size: int, mode: str, decoder: str) -> Callable[[ImageLoader], np.ndarray]:
    """Create a thread-safe function that calls an image's loader and returns [size, size, 3] uint8 RGB, upright.

    Args:
        size: pixels a side.
        mode: how images become square, as in `resize_images`.
        decoder: one of `DECODERS`.
    """
    if decoder == TENSORFLOW:
        resize = resizer(size, mode)
        return lambda load: resize(load())

    def decode(load: ImageLoader) -> np.ndarray:
        if isinstance(load, EncodedImage):
            return _decode_resized(load.read(), load.name, size, mode, scaled=decoder == PILLOW_SCALED)
        return resize_with_pillow(load(), size, mode)

    return decode


def resize_with_pillow(image: np.ndarray, size: int, mode: str) -> np.ndarray:
    """Resize one image [h, w, 3] uint8 to [size, size, 3] uint8, with Pillow."""
    from PIL import Image

    if image.shape == (size, size, 3):
        return image
    return np.asarray(_resize(Image.fromarray(image), (image.shape[1], image.shape[0]), size, mode, orientation=1))


def _decode_resized(encoded: bytes, name: str, size: int, mode: str, scaled: bool) -> np.ndarray:
    """Decode an image file, as `image.decode` does, and resize it.

    Raises:
        UnreadableImageError: as `image.decode`.
    """
    with open_image(encoded, name) as image:
        full_size = image.size
        if scaled:
            image.draft(None, (_SCALED_MARGIN * size, _SCALED_MARGIN * size))
        rgb = to_rgb(image)
        orientation = orientation_of(image)
        # Turned after the resize, because that costs less.
        return make_upright(np.asarray(_resize(rgb, full_size, size, mode, orientation)), orientation)


def _resize(image: "Image.Image", full_size: tuple[int, int], size: int, mode: str, orientation: Any) -> "Image.Image":
    """Resize an image as it is stored; `make_upright` then turns it.

    Args:
        image: RGB image. A scaled decode has left each side 1, 2, 4 or 8 times smaller, rounded up.
        full_size: width and height of the image in the file.
        size: pixels a side.
        mode: as in `resize_images`.
        orientation: EXIF orientation. Where the margins of a crop differ by a pixel, the larger one is on the right or
            at the bottom of the upright image.
    """
    width, height = full_size
    # Pixels of the file in a pixel of the image.
    scale = 2 ** round(math.log2(max(width / image.width, height / image.height)))
    if mode == "pad" and width != height:
        return _pad(image, full_size, size, scale)
    box = (0, 0, width, height)
    if mode == "crop":
        side = min(full_size)
        left = _crop_start(width, side, orientation in _COLUMNS_REVERSED)
        top = _crop_start(height, side, orientation in _ROWS_REVERSED)
        box = (left, top, left + side, top + side)
    left, top, right, bottom = (edge / scale for edge in box)
    return _resize_part(image, (left, top, right, bottom), (size, size))


def _crop_start(length: int, side: int, is_reversed: bool) -> int:
    start = (length - side) // 2
    return length - side - start if is_reversed else start


def _resize_part(image: "Image.Image", box: _Box, size: tuple[int, int]) -> "Image.Image":
    """Resize a part of an image. Pixels that lie outside the part do not contribute."""
    from PIL import Image

    left, top = math.floor(box[0]), math.floor(box[1])
    outer = (left, top, math.ceil(box[2]), math.ceil(box[3]))
    part = image if outer == (0, 0, *image.size) else image.crop(outer)
    inner = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    return part.resize(size, Image.Resampling.BILINEAR, box=inner)


def _pad(image: "Image.Image", full_size: tuple[int, int], size: int, scale: int) -> "Image.Image":
    """Resize an image that grey margins make square; without ever holding the square, which may be far larger.

    Args:
        image, full_size, size: as in `_resize`.
        scale: pixels of the file in a pixel of the image.
    """
    from PIL import Image

    width, height = full_size
    is_wide = width > height
    long, short = max(full_size), min(full_size)
    margin = (long - short) // 2 / scale
    # Whole pixels of margin are drawn, of which the box takes what is needed.
    drawn = math.ceil(margin)
    start, end = drawn - margin, drawn + margin + short / scale
    narrowed = _resize_part(
        image,
        (0, 0, width / scale, image.height) if is_wide else (0, 0, image.width, height / scale),
        (size, image.height) if is_wide else (image.width, size),
    )
    canvas_size = (size, image.height + 2 * drawn) if is_wide else (image.width + 2 * drawn, size)
    canvas = Image.new("RGB", canvas_size, (PAD_GREY, PAD_GREY, PAD_GREY))
    canvas.paste(narrowed, (0, drawn) if is_wide else (drawn, 0))
    return canvas.resize(
        (size, size), Image.Resampling.BILINEAR, box=(0, start, size, end) if is_wide else (start, 0, end, size)
    )
