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
_Box = tuple[int, int, int, int]


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
    part = _part((image.shape[1], image.shape[0]), mode, orientation=None)
    return np.asarray(_resize(Image.fromarray(image), part, size))


def _decode_resized(encoded: bytes, name: str, size: int, mode: str, scaled: bool) -> np.ndarray:
    """Decode an image file, as `image.decode` does, and resize it.

    Raises:
        UnreadableImageError: as `image.decode`.
    """
    with open_image(encoded, name) as image:
        scale = 1
        full_size = image.size
        # Of other files, EXIF data and pixels are read together, and there is no scaled decode.
        if scaled and image.format == "JPEG":
            scale = _scale(full_size, _part(full_size, mode, orientation_of(image)), size)
            image.draft(None, (full_size[0] // scale, full_size[1] // scale))
        rgb = to_rgb(image)
        orientation = orientation_of(image)
        # Turned after the resize, because that costs less.
        resized = _resize(rgb, _part(full_size, mode, orientation), size, scale)
        return make_upright(np.asarray(resized), orientation)


def _part(full_size: tuple[int, int], mode: str, orientation: Any) -> _Box:
    """Return the part of an image, as it is stored, that becomes the square. With `pad` it reaches beyond the image.

    Args:
        full_size: width and height.
        mode: as in `resize_images`.
        orientation: EXIF orientation. Where the margins of a crop differ by a pixel, the larger one is on the right or
            at the bottom of the upright image.
    """
    width, height = full_size
    if mode == "stretch":
        return 0, 0, width, height
    if mode == "pad":
        across, down = ((max(full_size) - length) // 2 for length in full_size)
        return -across, -down, width + across, height + down
    side = min(full_size)
    left = _crop_start(width, side, orientation in _COLUMNS_REVERSED)
    top = _crop_start(height, side, orientation in _ROWS_REVERSED)
    return left, top, left + side, top + side


def _crop_start(length: int, side: int, is_reversed: bool) -> int:
    start = (length - side) // 2
    return length - side - start if is_reversed else start


def _scale(full_size: tuple[int, int], part: _Box, size: int) -> int:
    """Return how many times smaller a JPEG may be decoded: 8, 4, 2, or 1 for its full size."""
    largest = min(full_size) // (_SCALED_MARGIN * size)
    # The part must begin and end between two pixels of the smaller image. At the image's own edges it does anyway.
    edges = [edge for edge in part if edge not in (0, *full_size)]
    return next((scale for scale in (8, 4, 2) if scale <= largest and not any(edge % scale for edge in edges)), 1)


def _resize(image: "Image.Image", part: _Box, size: int, scale: int = 1) -> "Image.Image":
    """Resize a part of an image to a square.

    Args:
        image: RGB image, both sides `scale` times smaller than in its file, rounded up.
        part: of the image in its file.
        size: pixels a side.
        scale: 1, 2, 4 or 8.
    """
    from PIL import Image

    left, top, right, bottom = (edge / scale for edge in part)
    if left < 0 or top < 0:
        return _resize_padded(image, -left, -top, (right + left, bottom + top), size)
    # Cropped first: pixels beside the box of `resize` would contribute to its edges.
    outer = (math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))
    cropped = image if outer == (0, 0, *image.size) else image.crop(outer)
    inner = (left - outer[0], top - outer[1], right - outer[0], bottom - outer[1])
    return cropped.resize((size, size), Image.Resampling.BILINEAR, box=inner)


def _resize_padded(
    image: "Image.Image", across: float, down: float, content: tuple[float, float], size: int
) -> "Image.Image":
    """Resize an image with grey margins to a square, without holding the square at full size, which may be far larger.

    Args:
        image: RGB image.
        across: pixels of the margins left and right.
        down: pixels of the margins above and below; one of the two is 0.
        content: width and height of the image.
        size: pixels a side.
    """
    from PIL import Image

    # The long side first, which has no margins.
    narrow_size = (size, image.height) if down else (image.width, size)
    box = (0, 0, content[0], image.height) if down else (0, 0, image.width, content[1])
    narrow = image.resize(narrow_size, Image.Resampling.BILINEAR, box=box)
    across, down = int(across), int(down)
    canvas = Image.new("RGB", (narrow.width + 2 * across, narrow.height + 2 * down), (PAD_GREY, PAD_GREY, PAD_GREY))
    canvas.paste(narrow, (across, down))
    return canvas.resize((size, size), Image.Resampling.BILINEAR)
