"""Memory-mapped arrays on disk: streamed within bounded memory, written so that a file is complete or absent."""

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
from dogbreeds.core.files import atomic_write
from dogbreeds.core.text import size_text

# Bytes of a memory-mapped array that stay in memory while it is streamed.
WINDOW_BYTES = 64 << 20


class CacheWriteError(UserError):
    """The feature cache cannot be written. Complete rows stay on disk, and the same command resumes from them."""


def open_readonly(path: Path) -> np.ndarray:
    """Open an array on disk, memory-mapped and read-only.

    Raises:
        OSError, ValueError: if the file is missing or not a valid .npy file.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (SyntaxError, tokenize.TokenError) as error:
        # NumPy raises these for a damaged header.
        raise ValueError(str(error)) from error


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into a `CacheWriteError` about `path`.

    The block must not yield rows to a consumer: an OSError of the consumer's own would be reported as one of the cache.
    """
    try:
        yield
    except OSError as error:
        raise CacheWriteError(
            f"{path} cannot be written ({error.strerror}). The feature cache needs a writable folder on a disk with"
            " free space. Set features.dir=<folder>, or make room and run the same command again: it resumes from the"
            " completed rows."
        ) from error


def reserve_disk_space(path: Path) -> None:
    """Allocate a file's disk blocks now: running out of space during a memory-mapped write would kill the process."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise CacheWriteError(
                f"{path.parent.parent} has no room for {size_text(size)} of features ({error.strerror}). The feature"
                " cache needs a disk with that much free space. Set features.dir=<folder>, or features.dtype=float16"
                " for half the size, or type make clear to empty the cache."
            ) from error


def checksum(rows: np.ndarray) -> int:
    """Compute the CRC-32 of an array's bytes within bounded memory."""
    crc = 0
    for batch in iterate_batches(rows, max(1, WINDOW_BYTES // 4 // max(1, rows[:1].nbytes))):
        crc = zlib.crc32(np.ascontiguousarray(batch).data, crc)
    return crc


def iterate_batches(rows: np.ndarray, batch_size: int, start: int = 0) -> Iterator[np.ndarray]:
    """Yield an array's rows in order, in batches, with at most about `WINDOW_BYTES` of it in memory.

    Args:
        rows: [n, ...], memory-mapped or not.
        batch_size: rows of a batch; the last batch may have fewer.
        start: index of the first row to yield.
    """
    bytes_in_memory = 0
    for first in range(start, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        yield batch
        bytes_in_memory += batch.nbytes
        if bytes_in_memory > WINDOW_BYTES:
            release_pages(rows)
            bytes_in_memory = 0


def release_pages(rows: np.ndarray) -> None:
    """Free the memory pages behind a memory-mapped array. Written data stays; later reads come from the file."""
    mapped = getattr(rows, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def write_json_atomically(path: Path, content: dict[str, Any], durable: bool = False) -> None:
    """Write a JSON file that is complete or absent. The caller holds the lock that admits one writer to its folder.

    Args:
        path: the file.
        content: JSON-compatible values.
        durable: as for `atomic_write`.
    """
    with atomic_write(path, sole_writer=True, durable=durable) as temporary, temporary.open("w") as file:
        json.dump(content, file, indent=1)
