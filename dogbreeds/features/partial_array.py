"""Unfinished arrays of the feature cache: resume what an earlier process computed, and take rows from shards."""

import contextlib
import copy
import itertools
import json
import logging
import shutil
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dogbreeds.core import signals
from dogbreeds.core.errors import UserError
from dogbreeds.core.files import fsync
from dogbreeds.features.memmap import (
    WINDOW_BYTES,
    CacheWriteError,
    checksum,
    explain_write_errors,
    iterate_batches,
    open_readonly,
    release_pages,
    reserve_disk_space,
    write_json_atomically,
)

log = logging.getLogger(__name__)

# What an array was computed from, as plain JSON values. Its digest names the array's folder.
Identity = dict[str, Any]
# Lists of row indices by name, such as {"skipped": [40, 77]}. Indices are those of the whole array, in a shard too.
Notes = dict[str, list[int]]
# A producer is called with (rows, start, notes). It fills `rows` from index `start` to the end and yields the number of
# completed rows after each step. It may add to `notes`, which hold an earlier process's notes if it resumes: at each
# yield they must describe exactly the completed rows. `rows` may be only the first part of the whole array.
Producer = Callable[[np.ndarray, int, Notes], Generator[int, None, None]]

PROGRESS_FILE = "progress.json"
ENTRY_FILE = "entry.json"
ROWS_FILE = "rows.npy"
# Key of an identity that says which rows of an array a shard holds.
SHARD = "shard"
# Minimum time between two writes of an array's progress.
_PROGRESS_SECONDS = 1.0


@dataclass(frozen=True)
class CachedArray:
    """A complete array on disk.

    Attributes:
        folder: folder of the entry.
        rows: [n, ...] the array, memory-mapped and read-only.
        notes: what its producer noted, as row indices by name.
    """

    folder: Path
    rows: np.ndarray
    notes: Notes


@dataclass(frozen=True)
class Shard:
    """A range of an array's rows that one job computes.

    `first` is a multiple of `step`, and `end` is one or the array's end, so rows share a batch with the same rows as in
    the unsharded computation.

    Attributes:
        first: index of the first row.
        end: index after the last row.
        total: rows of the whole array.
        step: rows that are computed together.
    """

    first: int
    end: int
    total: int
    step: int

    def __len__(self) -> int:
        return self.end - self.first

    def identity(self, array: Identity) -> Identity:
        """Return the identity to cache these rows under: the array's own if they are all its rows."""
        return array if len(self) == self.total else array | {SHARD: asdict(self)}


@dataclass(frozen=True)
class RowProgress:
    """How much of an array is complete; `progress.json` holds these fields.

    Attributes:
        identity: what the array is computed from.
        step: rows that are computed together.
        done: number of complete rows, from the first on.
        crc32: checksum of the complete rows.
        notes: what the producer noted about the complete rows.
    """

    identity: Identity
    step: int
    done: int = 0
    crc32: int = 0
    notes: Notes = field(default_factory=dict)


class PartialArray:
    """An array that is being computed; resumes at the last completed row of an earlier process.

    The caller must hold the entry's lock.

    Args:
        folder: folder of the unfinished array, created if missing.
        initial: identity and step; used as the progress unless an earlier one can be resumed.
        shape: of the whole array, rows first.
        dtype: of its values.

    Attributes:
        rows: the array at its full size, memory-mapped and writable.
        notes: for the producer to read and to add to.
    """

    def __init__(self, folder: Path, initial: RowProgress, shape: tuple[int, ...], dtype: str):
        self._folder = folder
        self._progress_file = folder / PROGRESS_FILE
        with explain_write_errors(folder):
            self._progress = self._load_progress(initial, shape, dtype) or self._create(initial, shape, dtype)
            self.rows = np.lib.format.open_memmap(folder / ROWS_FILE, mode="r+")
        self._written_at = time.monotonic()
        self.notes = copy.deepcopy(self._progress.notes)

    @property
    def done(self) -> int:
        """Number of complete rows."""
        return self._progress.done

    def advance(self, done: int) -> None:
        """Record the number of complete rows, in memory at once and on disk at most once a second."""
        before = self._progress
        window = max(1, WINDOW_BYTES // max(1, self.rows[:1].nbytes))
        crc = zlib.crc32(np.ascontiguousarray(self.rows[before.done : done]).data, before.crc32)
        # A single assignment: a signal handler that interrupts here sees all of it or none.
        self._progress = replace(before, done=done, crc32=crc, notes=copy.deepcopy(self.notes))
        if done // window > before.done // window:
            release_pages(self.rows)
        if time.monotonic() - self._written_at >= _PROGRESS_SECONDS:
            self._write_progress()

    @contextlib.contextmanager
    def preserved_on_error(self) -> Iterator[None]:
        """Save the progress if the block is cut off.

        Delete the array instead if no row is complete, or after a `UserError`: fixing its cause changes the identity.
        """
        try:
            yield
        except BaseException as error:
            # If the progress cannot be written, the last one on disk stays, and the block's own error is raised.
            with signals.deferred(), contextlib.suppress(CacheWriteError):
                if self.done == 0 or (isinstance(error, UserError) and not isinstance(error, CacheWriteError)):
                    shutil.rmtree(self._folder, ignore_errors=True)
                else:
                    self._write_progress()
            raise

    def flush(self) -> None:
        """Flush all rows and the progress to disk, so that another host can read them on a network file system.

        Raises:
            RuntimeError: if the producer ended before the last row.
        """
        if self.done != len(self.rows):
            raise RuntimeError(
                f"the producer of {self._folder.with_suffix('')} ended after {self.done} of {len(self.rows)} rows"
            )
        with explain_write_errors(self._folder):
            self.rows.flush()
            fsync(self._folder / ROWS_FILE)
        self._write_progress()

    def publish(self, entry_folder: Path) -> None:
        """Turn the flushed array into a cache entry by renaming its folder."""
        content = {"identity": self._progress.identity, "crc32": self._progress.crc32, "notes": self._progress.notes}
        with explain_write_errors(entry_folder):
            write_json_atomically(self._folder / ENTRY_FILE, content, durable=True)
            self._folder.replace(entry_folder)

    def _load_progress(self, initial: RowProgress, shape: tuple[int, ...], dtype: str) -> RowProgress | None:
        """Return an earlier process's progress; delete its folder if it cannot be resumed."""
        if not self._folder.exists():
            return None
        found = read_array(self._progress_file, initial.identity, shape, dtype)
        if not self._progress_file.exists():
            # The process ended before it wrote the progress for the first time.
            log.warning("%s has no %s: recomputing from the first row", self._folder, PROGRESS_FILE)
        elif found is None or checksum(found[0][: found[1].done]) != found[1].crc32:
            log.warning("%s is damaged: recomputing from the first row", self._folder)
        elif found[1].step != initial.step:
            log.warning(
                "%s was computed in batches of %s rows, not %s: recomputing from the first row",
                self._folder.name,
                found[1].step,
                initial.step,
            )
        else:
            return found[1]
        shutil.rmtree(self._folder)
        return None

    def _create(self, initial: RowProgress, shape: tuple[int, ...], dtype: str) -> RowProgress:
        self._progress = initial
        try:
            self._folder.mkdir()
            np.lib.format.open_memmap(self._folder / ROWS_FILE, mode="w+", dtype=dtype, shape=shape)
            reserve_disk_space(self._folder / ROWS_FILE)
            self._write_progress()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return initial

    def _write_progress(self) -> None:
        with explain_write_errors(self._progress_file):
            write_json_atomically(self._progress_file, asdict(self._progress))
        self._written_at = time.monotonic()


def stream_rows(
    partial: PartialArray, producer: Producer, batch_size: int, start: int
) -> Generator[np.ndarray, None, None]:
    """Yield an unfinished array's rows in order, in batches: the complete ones first, the others while computing them.

    Args:
        partial: the unfinished array.
        producer: computes the missing rows.
        batch_size: rows of a batch; the last one may have fewer.
        start: index of the first row to yield.
    """
    yielded = start
    total = len(partial.rows)
    with contextlib.closing(producer(partial.rows, partial.done, partial.notes)) as producing:
        for done in itertools.chain([partial.done], producing if partial.done < total else ()):
            partial.advance(done)
            while yielded < done and (done - yielded >= batch_size or done == total):
                first = yielded
                yielded = min(yielded + batch_size, done)
                yield partial.rows[first:yielded]


def join_shards(kind: str, shards: list[tuple[Shard, CachedArray]], producer: Producer) -> Producer:
    """Return a producer that copies the rows that shards hold and computes the others.

    Args:
        kind: kind of the array, for the log.
        shards: shards and their arrays, in the order of their rows; they may overlap.
        producer: computes the rows that no shard holds.
    """

    def join(rows: np.ndarray, start: int, notes: Notes) -> Generator[int, None, None]:
        # Of each shard that is needed: the first row to copy, its range and its array.
        needed: list[tuple[int, Shard, CachedArray]] = []
        position = start
        for shard, entry in shards:
            if shard.end > position:
                needed.append((max(shard.first, position), shard, entry))
                position = shard.end
        if needed:
            count = sum(shard.end - begin for begin, shard, _ in needed)
            log.info(
                "%s: %s of %s rows copied from %d cached shards", kind, f"{count:,}", f"{len(rows):,}", len(needed)
            )
        position = start
        for begin, shard, entry in needed:
            if begin > position:
                yield from producer(rows[:begin], position, notes)
            yield from _copy_shard(rows, begin, shard, entry, notes)
            position = shard.end
        if position < len(rows):
            yield from producer(rows, position, notes)

    return join


def _copy_shard(
    rows: np.ndarray, begin: int, shard: Shard, entry: CachedArray, notes: Notes
) -> Generator[int, None, None]:
    """Copy a shard's rows from `begin` on, in whole steps: if the shard disappears, computing must resume at a step."""
    steps = max(1, WINDOW_BYTES // 4 // max(1, shard.step * entry.rows[:1].nbytes))
    for batch in iterate_batches(entry.rows, steps * shard.step, begin - shard.first):
        end = begin + len(batch)
        rows[begin:end] = batch
        for name, noted in entry.notes.items():
            notes.setdefault(name, []).extend(row for row in noted if begin <= row < end)
        yield end
        begin = end


def read_array(
    metadata_file: Path, identity: Identity, shape: tuple[int, ...], dtype: str
) -> tuple[np.ndarray, RowProgress] | None:
    """Open an array and its metadata, checking all that can be checked without reading the rows.

    Args:
        metadata_file: `entry.json` or `progress.json`, in the array's folder.
        identity: expected identity.
        shape: expected shape, rows first.
        dtype: expected type of the values.

    Returns:
        The rows, memory-mapped and read-only, and their progress; None if missing, damaged or not as expected.
    """
    try:
        rows = open_readonly(metadata_file.with_name(ROWS_FILE))
        progress = RowProgress(**{"step": 1, "done": len(rows)} | json.loads(metadata_file.read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        # RecursionError: JSON with brackets nested too deeply.
        return None
    expected = (shape, np.dtype(dtype), json.loads(json.dumps(identity)))
    as_expected = (rows.shape, rows.dtype, progress.identity) == expected
    plausible = isinstance(progress.done, int) and 0 <= progress.done <= len(rows) and isinstance(progress.notes, dict)
    return (rows, progress) if as_expected and plausible and rows.flags.c_contiguous else None
