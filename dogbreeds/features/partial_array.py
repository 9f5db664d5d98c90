"""A kept array on its way: what an earlier process has done of it is gone on with, and what shards have of it is taken from them."""

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
from dogbreeds.features.memmap import (
    WINDOW_BYTES,
    Unwritable,
    checksum,
    let_go,
    opened,
    pieces,
    reserve,
    sync,
    write_aside,
    writing,
)

log = logging.getLogger(__name__)

# Plain values only
Identity = dict[str, Any]
# Row numbers of the array, a shard's too, under what is said of these rows
Notes = dict[str, list[int]]
# Fills an array from a row on to its end, and yields the number of rows done. It may add to its notes, which are those of an earlier process where
# it goes on: whenever it yields, they must be of the rows that are done. What it is given may be the first rows of the array alone.
Produce = Callable[[np.ndarray, int, Notes], Generator[int, None, None]]

PROGRESS = "progress.json"
# The key of an identity that says which rows of an array it has
SHARD = "shard"
# Between two notes of how far an array has come
_PROGRESS_SECONDS = 1.0


@dataclass(frozen=True)
class CachedArray:
    """A whole array on disk.

    Attributes:
        folder: where it is.
        rows: the array, memory-mapped and read-only.
        notes: its producer's.
    """

    folder: Path
    rows: np.ndarray
    notes: Notes


@dataclass(frozen=True)
class Shard:
    """Some rows of an array, computed by a job of its own: those from `first` to before `end`, of `total`, `step` of them at a time.

    It begins at a multiple of `step` and ends at one or at the array's end, so that the same rows are computed together as in the whole.
    """

    first: int
    end: int
    total: int
    step: int

    def __len__(self) -> int:
        return self.end - self.first

    def identity(self, array: Identity) -> Identity:
        """What the rows are kept under, given the array's: they are an entry of their own, but where they are all."""
        return array if len(self) == self.total else array | {SHARD: asdict(self)}


@dataclass(frozen=True)
class Progress:
    """How far an array has come: rows that are done, `step` of them at a time, their checksum, and what their producer noted."""

    identity: Identity
    step: int
    done: int = 0
    crc32: int = 0
    notes: Notes = field(default_factory=dict)


class PartialArray:
    """An array on its way; what an earlier process has done of it is gone on with. The entry's lock must be held.

    Attributes:
        rows: the array at its full size, memory-mapped.
        notes: for its producer.
    """

    def __init__(self, folder: Path, new: Progress, shape: tuple[int, ...], dtype: str):
        self._folder, self._file = folder, folder / PROGRESS
        with writing(folder):
            self._progress = self._begun(new, shape, dtype) or self._begin(new, shape, dtype)
            self.rows = np.lib.format.open_memmap(folder / "rows.npy", mode="r+")
        self._noted = time.monotonic()
        self.notes = copy.deepcopy(self._progress.notes)

    @property
    def done(self) -> int:
        """Rows that are done."""
        return self._progress.done

    def advance(self, done: int) -> None:
        """Takes note of the rows that are done, once a second on disk too."""
        before, window = self._progress, max(1, WINDOW_BYTES // max(1, self.rows[:1].nbytes))
        crc = zlib.crc32(np.ascontiguousarray(self.rows[before.done : done]).data, before.crc32)
        # At once: an interruption finds all or nothing of it
        self._progress = replace(before, done=done, crc32=crc, notes=copy.deepcopy(self.notes))
        if done // window > before.done // window:
            let_go(self.rows)
        if time.monotonic() - self._noted >= _PROGRESS_SECONDS:
            self._note()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """However the block is cut off, what is done stays; unless there is nothing, or the user must put something right, which makes it another
        array."""
        try:
            yield
        except BaseException as end:
            # The last note stays, and what has ended the block is said
            with signals.deferred(), contextlib.suppress(Unwritable):
                if self.done == 0 or (isinstance(end, UserError) and not isinstance(end, Unwritable)):
                    shutil.rmtree(self._folder, ignore_errors=True)
                else:
                    self._note()
            raise

    def settle(self) -> None:
        """Sees all its rows to the disk, and on a network file system to the server, where another host may read them."""
        if self.done != len(self.rows):
            raise RuntimeError(
                f"the producer of {self._folder.with_suffix('')} ended after {self.done} of {len(self.rows)} rows"
            )
        with writing(self._folder):
            self.rows.flush()
            sync(self._folder / "rows.npy")
        self._note()

    def finish(self, place: Path) -> None:
        """Makes it an entry, once it is settled."""
        about = {"identity": self._progress.identity, "crc32": self._progress.crc32, "notes": self._progress.notes}
        with writing(place):
            write_aside(self._folder / "entry.json", about)
            sync(self._folder / "entry.json")
            self._folder.replace(place)

    def _begun(self, new: Progress, shape: tuple[int, ...], dtype: str) -> Progress | None:
        """How far an earlier process came, if that can be gone on with."""
        if not self._folder.exists():
            return None
        found = read(self._file, new.identity, shape, dtype)
        # Cut off before the first note of it
        if not self._file.exists():
            log.warning("%s does not say what of it is done: it is computed anew", self._folder)
        elif found is None or checksum(found[0][: found[1].done]) != found[1].crc32:
            log.warning("%s was damaged and is computed anew", self._folder)
        elif found[1].step != new.step:
            log.warning(
                "%s was computed %s at a time, not %s: it is computed anew", self._folder.name, found[1].step, new.step
            )
        else:
            return found[1]
        shutil.rmtree(self._folder)
        return None

    def _begin(self, new: Progress, shape: tuple[int, ...], dtype: str) -> Progress:
        self._progress = new
        try:
            self._folder.mkdir()
            np.lib.format.open_memmap(self._folder / "rows.npy", mode="w+", dtype=dtype, shape=shape)
            reserve(self._folder / "rows.npy")
            self._note()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return new

    def _note(self) -> None:
        with writing(self._file):
            write_aside(self._file, asdict(self._progress))
        self._noted = time.monotonic()


def computed(part: PartialArray, produce: Produce, batch: int, start: int) -> Generator[np.ndarray, None, None]:
    """A part's rows from a row on, in order, batch by batch: those that are done, then the others while they are being computed."""
    given, total = start, len(part.rows)
    with contextlib.closing(produce(part.rows, part.done, part.notes)) as producing:
        for done in itertools.chain([part.done], producing if part.done < total else ()):
            part.advance(done)
            while given < done and (done - given >= batch or done == total):
                first, given = given, min(given + batch, done)
                yield part.rows[first:given]


def joined(kind: str, shards: list[tuple[Shard, CachedArray]], produce: Produce) -> Produce:
    """Takes the rows that shards have from them, and produces the others."""

    def join(rows: np.ndarray, start: int, notes: Notes) -> Generator[int, None, None]:
        taken, at = [], start
        for shard, entry in shards:
            if shard.end > at:
                taken.append((max(shard.first, at), shard, entry))
                at = shard.end
        count = sum(shard.end - begin for begin, shard, _ in taken)
        if taken:
            log.info("%s: %s of %s rows are taken from %d shards", kind, f"{count:,}", f"{len(rows):,}", len(taken))
        at = start
        for begin, shard, entry in taken:
            if begin > at:
                yield from produce(rows[:begin], at, notes)
            yield from _copied(rows, begin, shard, entry, notes)
            at = shard.end
        if at < len(rows):
            yield from produce(rows, at, notes)

    return join


def _copied(rows: np.ndarray, begin: int, shard: Shard, entry: CachedArray, notes: Notes) -> Generator[int, None, None]:
    """Copies a shard's rows from `begin` on, whole steps at a time: without the shard, whoever goes on would compute from there."""
    steps = max(1, WINDOW_BYTES // 4 // max(1, shard.step * entry.rows[:1].nbytes))
    for piece in pieces(entry.rows, steps * shard.step, begin - shard.first):
        end = begin + len(piece)
        rows[begin:end] = piece
        for name, said in entry.notes.items():
            notes.setdefault(name, []).extend(row for row in said if begin <= row < end)
        yield end
        begin = end


def read(file: Path, identity: Identity, shape: tuple[int, ...], dtype: str) -> tuple[np.ndarray, Progress] | None:
    """The rows beside a file, read-only, and what it says of them; None where they are damaged, as far as is seen without reading them all."""
    try:
        rows = opened(file.with_name("rows.npy"))
        said = Progress(**{"step": 1, "done": len(rows)} | json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        # the last of brackets without end
        return None
    same = (rows.shape, rows.dtype, said.identity) == (shape, np.dtype(dtype), json.loads(json.dumps(identity)))
    plausible = isinstance(said.done, int) and 0 <= said.done <= len(rows) and isinstance(said.notes, dict)
    return (rows, said) if same and plausible and rows.flags.c_contiguous else None
