"""One photo: from a file's bytes to pixels, or to a sentence that says why not.

Nobody vouches for a photo. What one may cost is bounded before anything of it is decoded: its bytes, the pixels that its header declares, and how
often it goes over them. Whatever a file turns out to be, it ends in pixels or in `Unreadable`.
"""

import contextlib
import io
import re
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.core.text import ODD

if TYPE_CHECKING:
    from PIL import Image

# -> [h, w, 3] uint8 RGB; raises Unreadable
Photo = Callable[[], np.ndarray]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_BYTES = 128 << 20
MAX_PIXELS = 100_000_000
# Padding to a square, of single floats, must stay possible
MAX_SIDE = 16_384
# Of a JPEG: progressive ones have ten or so, and each costs as much time as a photo, in as little as ten bytes
MAX_SCANS = 100
_FORMATS = ("JPEG", "PNG", "WEBP")
BEGINNINGS = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP", re.DOTALL)

NOT_A_PHOTO, DAMAGED, NOT_A_FILE, OUTSIDE = (
    "not a photo",
    "cut off or damaged",
    "not a readable file",
    "out of the root",
)
TOO_MANY_BYTES, TOO_MANY_PIXELS, TOO_MANY_SCANS = "too many bytes", "too many pixels", "too many scans"
REASONS = (NOT_A_PHOTO, DAMAGED, TOO_MANY_BYTES, TOO_MANY_PIXELS, TOO_MANY_SCANS, NOT_A_FILE, OUTSIDE)

_OR_SKIP = ", or type data.on_corrupt=skip."


class Unreadable(UserError):
    """A photo that `data.on_corrupt=skip` passes over.

    Attributes:
        reason: one of `REASONS`, to count by.
    """

    def __init__(self, said: str, reason: str = DAMAGED):
        super().__init__(said)
        self.reason = reason

    @property
    def plain(self) -> str:
        """Its sentences for a command that has no such setting."""
        return str(self).replace(_OR_SKIP, ".")


def decode(encoded: bytes, name: str) -> np.ndarray:
    """A photo's file as pixels, upright.

    Args:
        encoded: JPEG, PNG or WebP; grey-scale, palette, CMYK and transparent ones become RGB, and of a moving one the first picture.
        name: what to call it in an error, printable.

    Returns:
        [h, w, 3] uint8 RGB.

    Raises:
        Unreadable: where it is not such a file, is cut off, or is too large.
    """
    with _opened(encoded, name) as image:
        # First, because a PNG may have its EXIF behind its pixels.
        pixels = _rgb(image)
        return _TURNED.get(image.getexif().get(_ORIENTATION), _as_it_is)(pixels)


def _rgb(image: "Image.Image") -> np.ndarray:
    # 16 bits of grey, which Pillow would clip to white
    if image.mode.startswith("I"):
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    image.load()
    # It changes no colour, and Pillow trips over one that has no palette
    image.info.pop("transparency", None)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _as_it_is(pixels: np.ndarray) -> np.ndarray:
    return pixels


# What makes a photo upright, by its orientation. Not Pillow's `exif_transpose`, which writes the other tags anew and fails where one is damaged.
_ORIENTATION = 0x0112
_TURNED: dict[Any, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}


@contextlib.contextmanager
def _opened(encoded: bytes, name: str) -> "Iterator[Image.Image]":
    """A photo of which only the beginning has been read; whatever goes wrong with it in the body is `Unreadable`."""
    from PIL import Image

    _check_bytes(len(encoded), name)
    if _scans(encoded) > MAX_SCANS:
        raise _too_large(
            f"{name} goes over its pixels more than {MAX_SCANS} times", "A JPEG may do so that often", TOO_MANY_SCANS
        )
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            _check_pixels(image.width, image.height, name)
            yield image
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(f"{name} declares far more than {MAX_PIXELS // 10**6} megapixels") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        # each of which Pillow's readers raise
        begins = BEGINNINGS.match(encoded) is not None
        raise Unreadable(
            f"{name} cannot be read as a photo ({_why(error) if begins else 'it does not begin as one'}). "
            f"Photos must be whole JPEG, PNG or WebP files. Replace the file{_OR_SKIP}",
            DAMAGED if begins else NOT_A_PHOTO,
        ) from error


def _why(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    # Whose own text is an object's address
    if isinstance(error, UnidentifiedImageError):
        return "its header is damaged"
    return ODD.sub("?", " ".join(str(error).split()))[:120] or type(error).__name__


def _check_bytes(count: int, name: str) -> None:
    if count > MAX_BYTES:
        raise _too_large(f"{name} has {count / 2**20:,.0f} MiB", f"A photo may have {MAX_BYTES >> 20}", TOO_MANY_BYTES)


def _check_pixels(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise _too_many_pixels(f"{name} declares {width:,} x {height:,} pixels")


def _too_many_pixels(received: str) -> Unreadable:
    return _too_large(
        received, f"A photo may have {MAX_PIXELS // 10**6} megapixels and {MAX_SIDE:,} on a side", TOO_MANY_PIXELS
    )


def _too_large(received: str, allowed: str, reason: str) -> Unreadable:
    return Unreadable(f"{received}. {allowed}, and no more. Save it smaller{_OR_SKIP}", reason)


# Of a segment that has a length, or of the end
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")


def _scans(encoded: bytes) -> int:
    """How often a JPEG goes over its pixels, counted up to one more than is allowed; 0 for other files."""
    scans = 0
    found = _MARKER.search(encoded, 2) if encoded.startswith(b"\xff\xd8") else None
    while found and found[0] != b"\xff\xd9" and scans <= MAX_SCANS:
        scans += found[0] == b"\xff\xda"
        found = _MARKER.search(encoded, found.end() + int.from_bytes(encoded[found.end() : found.end() + 2], "big"))
    return scans
