"""One photo: from a file's bytes to pixels, or to a sentence that says why not."""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.spec import Refused

if TYPE_CHECKING:
    from PIL import Image

Photo = Callable[[], np.ndarray]  # -> [h, w, 3] uint8 RGB; raises Unreadable

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_FORMATS = ("JPEG", "PNG", "WEBP")


class Unreadable(Refused):
    """A photo that cannot be decoded."""


def digest(content: bytes) -> str:
    """A short name for some content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def decode(encoded: bytes, name: str) -> np.ndarray:
    """A photo's file as pixels, upright.

    Args:
        encoded: JPEG, PNG or WebP; grey-scale, palette, CMYK and transparent ones become RGB.
        name: what to call it in an error.

    Returns:
        [h, w, 3] uint8 RGB.

    Raises:
        Unreadable: where it is not such a file, or is cut off.
    """
    from PIL import ImageOps

    with _opened(encoded, name) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@contextlib.contextmanager
def _opened(encoded: bytes, name: str) -> "Iterator[Image.Image]":
    """A photo of which only the beginning has been read; whatever goes wrong with it in the body is `Unreadable`."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            yield image
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise Unreadable(
            f"{name} cannot be read as a photo ({' '.join(str(error).split())[:120]}). "
            "Photos must be whole JPEG, PNG or WebP files. Replace the file, or type data.on_corrupt=skip."
        ) from error


_EXAMINED: dict[tuple[str, int, int], "str | Unreadable"] = {}


def examine(paths: Sequence[str]) -> "list[str | Unreadable]":
    """The digest of each file's content, or what is wrong with its beginning; remembered while its size and time stay as they are."""
    keys = [(path, status.st_size, status.st_mtime_ns) for path, status in zip(paths, map(os.stat, paths), strict=True)]
    new = [key for key in keys if key not in _EXAMINED]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        _EXAMINED.update(zip(new, pool.map(_examine, [path for path, *_ in new]), strict=True))
    return [_EXAMINED[key] for key in keys]


def _examine(path: str) -> "str | Unreadable":
    encoded = Path(path).read_bytes()
    try:
        with _opened(encoded, path):
            return digest(encoded)
    except Unreadable as error:
        return error


def decode_file(path: str) -> np.ndarray:
    """`decode` of the file at a path."""
    return decode(Path(path).read_bytes(), path)
