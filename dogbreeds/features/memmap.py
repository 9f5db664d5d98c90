"""Arrays in files: gone through without being held in memory, written so that they are whole or absent."""

import contextlib
import json
import mmap
import os
import tokenize
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dogbreeds.core.errors import UserError

# How much of a mapped array is held in memory while it is gone through
WINDOW_BYTES = 64 << 20


class Unwritable(UserError):
    """What is kept cannot be written. What has been computed stays: with a disk that can be, it is gone on with."""


def opened(path: Path) -> np.ndarray:
    """An array on disk, read-only. Raises `OSError` or `ValueError` where there is none."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (SyntaxError, tokenize.TokenError) as error:
        # of NumPy, where a header is damaged
        raise ValueError(str(error)) from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says that a path cannot be written. No rows may be given away within: what happens to who takes them is another matter."""
    try:
        yield
    except OSError as error:
        raise Unwritable(
            f"{path} cannot be written ({error.strerror}). Features need a folder to be kept in, on a disk with room;"
            " once there is, the same command goes on from what is done. Type features.dir=<folder>."
        ) from error


def reserve(path: Path) -> None:
    """Takes the disk space at once: running out of it later, while a mapped file is written, would kill the process."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise Unwritable(
                f"{path.parent.parent} has no room for {size / 1e9:.1f} GB of features ({error.strerror}). They need a"
                " disk that does. Type features.dir=<folder>, features.dtype=float16 for half of it, or make clear."
            ) from error


def checksum(rows: np.ndarray) -> int:
    crc = 0
    for piece in pieces(rows, max(1, WINDOW_BYTES // 4 // max(1, rows[:1].nbytes))):
        crc = zlib.crc32(np.ascontiguousarray(piece).data, crc)
    return crc


def pieces(rows: np.ndarray, batch: int, start: int = 0) -> Iterator[np.ndarray]:
    """An array's rows in order, from a row on, without holding more of it in memory than a window."""
    held = 0
    for first in range(start, len(rows), batch):
        piece = rows[first : first + batch]
        yield piece
        held += piece.nbytes
        if held > WINDOW_BYTES:
            let_go(rows)
            held = 0


def let_go(rows: np.ndarray) -> None:
    """Gives back the memory behind a mapped file; what was written stays, and what is read again comes from the file."""
    mapped = getattr(rows, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def write_aside(path: Path, about: dict[str, Any]) -> None:
    """Writes a JSON file beside its place and renames it."""
    aside = path.with_name("aside")
    try:
        with aside.open("w") as file:
            json.dump(about, file, indent=1)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
