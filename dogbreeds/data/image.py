"""Decoding of a single image: from a file's bytes to RGB pixels, or to an error that states why it cannot be read.

Image files are untrusted. Their cost is bounded before anything is decoded: the number of bytes, the pixels that the
header declares, and the number of scans of a JPEG. Every file ends in pixels or in `UnreadableImageError`.
"""

import contextlib
import io
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.core.text import UNPRINTABLE

if TYPE_CHECKING:
    from PIL import Image

# Decodes one image: returns [h, w, 3] uint8 RGB, or raises UnreadableImageError.
ImageLoader = Callable[[], np.ndarray]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_BYTES = 128 << 20
MAX_PIXELS = 100_000_000
# Bounds the memory that padding to a square takes, in float32.
_MAX_SIDE = 16_384
# Of a JPEG. Progressive ones have about ten; each scan costs the time of a whole image and needs only ten bytes.
_MAX_SCANS = 100
_FORMATS = ("JPEG", "PNG", "WEBP")
MAGIC_BYTES = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP", re.DOTALL)

_NOT_AN_IMAGE = "not an image"
_DAMAGED = "truncated or damaged"
_TOO_MANY_BYTES = "too many bytes"
_TOO_MANY_PIXELS = "too many pixels"
_TOO_MANY_SCANS = "too many scans"
NOT_A_FILE = "not a readable file"
OUTSIDE_ROOT = "outside the root"
REASONS = (_NOT_AN_IMAGE, _DAMAGED, _TOO_MANY_BYTES, _TOO_MANY_PIXELS, _TOO_MANY_SCANS, NOT_A_FILE, OUTSIDE_ROOT)

# End of each message, for commands that have this setting.
OR_SKIP = ", or type data.on_corrupt=skip."


class UnreadableImageError(UserError):
    """An image cannot be read. With `data.on_corrupt=skip` it is skipped.

    Attributes:
        reason: one of `REASONS`, for counting.
    """

    def __init__(self, message: str, reason: str = _DAMAGED):
        super().__init__(message)
        self.reason = reason

    @property
    def message_without_skip(self) -> str:
        """The message for a command that has no `data.on_corrupt` setting."""
        return str(self).replace(OR_SKIP, ".")


def decode(encoded: bytes, name: str) -> np.ndarray:
    """Decode an image file and turn it upright.

    Args:
        encoded: content of a JPEG, PNG or WebP file. Greyscale, palette, CMYK and transparent images are converted to
            RGB. Of an animation, the first frame is taken.
        name: printable name of the image for error messages.

    Returns:
        [h, w, 3] uint8 RGB.

    Raises:
        UnreadableImageError: if it is not such a file, is truncated, or is too large.
    """
    with open_image(encoded, name) as image:
        # Pixels are decoded first, because the EXIF data of a PNG may come after them.
        pixels = np.asarray(to_rgb(image))
        return make_upright(pixels, orientation_of(image))


@dataclass(frozen=True)
class EncodedImage:
    """An `ImageLoader` that reads an image file. A decoder may take the file's content and decode it at another size.

    Attributes:
        read: returns the content, or raises `UnreadableImageError`.
        name: printable name of the image for error messages.
    """

    read: Callable[[], bytes]
    name: str

    def __call__(self) -> np.ndarray:
        return decode(self.read(), self.name)


def declared_pixels(encoded: bytes, name: str) -> int:
    """Return the number of pixels that an image file's header declares, without decoding it.

    Args:
        encoded: content of a JPEG, PNG or WebP file.
        name: printable name of the image for error messages.

    Raises:
        UnreadableImageError: if it is not such a file, or is too large.
    """
    with open_image(encoded, name) as image:
        return image.width * image.height


def to_rgb(image: "Image.Image") -> "Image.Image":
    """Decode the pixels of an open image and convert them to RGB."""
    from PIL import Image

    # 16-bit greyscale: Pillow's own conversion would clip it to white.
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    image.load()
    # Transparency does not affect the colours, and Pillow fails on it in an image without a palette.
    image.info.pop("transparency", None)
    return image if image.mode == "RGB" else image.convert("RGB")


_ORIENTATION_TAG = 0x0112
# Transformation that turns an image upright, by its EXIF orientation. Pillow's `exif_transpose` is not used, because it
# also rewrites the other tags and fails if one of them is damaged.
_UPRIGHT: dict[Any, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}


def orientation_of(image: "Image.Image") -> Any:
    """Return the EXIF orientation of an image whose pixels are decoded; of a damaged file it may be any value."""
    return image.getexif().get(_ORIENTATION_TAG)


def make_upright(pixels: np.ndarray, orientation: Any) -> np.ndarray:
    """Turn pixels [h, w, 3] upright. They stay as they are if the orientation is unknown."""
    return _UPRIGHT[orientation](pixels) if orientation in _UPRIGHT else pixels


@contextlib.contextmanager
def open_image(encoded: bytes, name: str) -> "Iterator[Image.Image]":
    """Open an image and read only its header. Errors of Pillow, in the body too, become `UnreadableImageError`."""
    from PIL import Image

    check_bytes(len(encoded), name)
    if _count_scans(encoded) > _MAX_SCANS:
        raise _too_large(f"{name} has more than {_MAX_SCANS} JPEG scans", f"{_MAX_SCANS} scans", _TOO_MANY_SCANS)
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            _check_pixels(image.width, image.height, name)
            yield image
    except UnreadableImageError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(f"{name} declares far more than {MAX_PIXELS // 10**6} megapixels") from error
    # Pillow's decoders raise each of these.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        has_signature = MAGIC_BYTES.match(encoded) is not None
        cause = _describe(error) if has_signature else "no JPEG, PNG or WebP signature"
        raise UnreadableImageError(
            f"{name} cannot be read as an image ({cause}). "
            f"Images must be complete JPEG, PNG or WebP files. Replace the file{OR_SKIP}",
            _DAMAGED if has_signature else _NOT_AN_IMAGE,
        ) from error


def _describe(error: Exception) -> str:
    """Return Pillow's error text as one printable line."""
    from PIL import UnidentifiedImageError

    # Its own text is the address of an object.
    if isinstance(error, UnidentifiedImageError):
        return "its header is damaged"
    return UNPRINTABLE.sub("?", " ".join(str(error).split()))[:120] or type(error).__name__


def check_bytes(count: int, name: str) -> None:
    """Raise `UnreadableImageError` if a file has more than `MAX_BYTES`."""
    if count > MAX_BYTES:
        raise _too_large(f"{name} has {count / 2**20:,.0f} MiB", f"{MAX_BYTES >> 20} MiB", _TOO_MANY_BYTES)


def _check_pixels(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS or max(width, height) > _MAX_SIDE:
        raise _too_many_pixels(f"{name} declares {width:,} x {height:,} pixels")


def _too_many_pixels(received: str) -> UnreadableImageError:
    limit = f"{MAX_PIXELS // 10**6} megapixels and {_MAX_SIDE:,} pixels a side"
    return _too_large(received, limit, _TOO_MANY_PIXELS)


def _too_large(received: str, limit: str, reason: str) -> UnreadableImageError:
    return UnreadableImageError(f"{received}. An image may have at most {limit}. Save it smaller{OR_SKIP}", reason)


# Start of a segment that has a length, or end of the image.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_JPEG_END = b"\xff\xd9"
_JPEG_SCAN = b"\xff\xda"


def _count_scans(encoded: bytes) -> int:
    """Count the scans of a JPEG, up to one more than allowed; 0 for other files."""
    scans = 0
    marker = _JPEG_MARKER.search(encoded, 2) if encoded.startswith(b"\xff\xd8") else None
    while marker and marker[0] != _JPEG_END and scans <= _MAX_SCANS:
        scans += marker[0] == _JPEG_SCAN
        length = int.from_bytes(encoded[marker.end() : marker.end() + 2], "big")
        marker = _JPEG_MARKER.search(encoded, marker.end() + length)
    return scans
