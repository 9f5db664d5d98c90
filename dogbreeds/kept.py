"""Arrays kept on disk under what they were computed from, so that no attempt computes again what another one has.

An entry is a folder `<kind>-<digest of its identity>/` with `rows.npy` and `entry.json` (identity, checksum). It is written beside
its place, in `<its name>.part/`, and renamed, so that it is whole or absent. A part knows how many of its rows are done, and their checksum:
where a process was cut off, the next one goes on. A lock file an entry lets one process compute while others wait, and keeps what is in use
from being evicted.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import logging
import mmap
import os
import shutil
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from dogbreeds import interruption
from dogbreeds.spec import Refused

log = logging.getLogger(__name__)

Identity = dict[str, Any]  # plain values only
# Fills the array from a row on and yields the number of rows done, in steps of so many rows; notes are plain values that it may add to.
Produce = Callable[[np.ndarray, int, dict[str, Any]], Generator[int, None, None]]

_PART = ".part"
_PROGRESS_SECONDS = 1.0  # between two notes of how far a part has come
_WINDOW_BYTES = 64 << 20  # how much of a mapped array is held in memory while it is gone through


@dataclass(frozen=True)
class Entry:
    """A whole array on disk.

    Attributes:
        folder: where it is.
        rows: the array, memory-mapped and read-only.
        notes: what its producer noted.
    """

    folder: Path
    rows: np.ndarray
    notes: dict[str, Any]


@dataclass
class _Progress:
    """How far a part has come: the first `done` rows, with this checksum. `step` is how many rows its producer does at a time."""

    identity: Identity
    step: int
    done: int = 0
    crc32: int = 0
    notes: dict[str, Any] = field(default_factory=dict)


def digest(identity: Identity) -> str:
    """A short name for what an array was computed from."""
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=12).hexdigest()


class Store:
    """The folder of kept arrays.

    Args:
        root: made when something is kept.
        max_bytes: beyond this the least recently used entries go, but none that is in use.
    """

    _verified: set[tuple[str, int]] = set()  # entries whose checksum this process has compared
    _in_use: dict[Path, IO[bytes]] = {}  # shared locks, held until the process ends or `release`

    def __init__(self, root: Path, max_bytes: int):
        self.root, self.max_bytes = root, max_bytes

    def array(self, kind: str, identity: Identity, shape: tuple[int, ...], dtype: str, produce: Produce, step: int = 1) -> Entry:
        """The whole array, computed as far as it is not there.

        Args:
            step: rows that are computed together, where that may touch the last bits of the result: what was cut off is gone on with in the
                same steps only.
        """
        row_bytes = max(1, int(np.prod(shape[1:])) * np.dtype(dtype).itemsize)
        for _ in self.stream(kind, identity, shape, dtype, produce, max(1, _WINDOW_BYTES // row_bytes), step=step):
            pass
        entry = self._open(self._folder(kind, identity))
        if entry is None:
            raise Refused(
                f"{self._folder(kind, identity)} went away while it was being used. Kept arrays must be left alone while an attempt runs. "
                "Run the same command again."
            )
        return entry

    def stream(
        self, kind: str, identity: Identity, shape: tuple[int, ...], dtype: str, produce: Produce, batch: int, start: int = 0, step: int = 1
    ) -> Iterator[np.ndarray]:
        """The array's rows from `start` on, in order, batch by batch, while they are being computed if they are not there yet."""
        folder = self._folder(kind, identity)
        with self._written(), self._locked(folder):
            entry = self._open(folder)
            if entry is None:
                with contextlib.closing(self._compute(folder, _Progress(identity, step), shape, dtype, produce, batch, start)) as pieces:
                    yield from pieces
                self._use(folder)
                self._evict()
                return
            self._use(folder)
        yield from _pieces(entry.rows[start:], batch)

    def entries(self) -> list[tuple[str, int, float, dict[str, Any]]]:
        """Folder name, bytes, time of last use and identity of each entry and part, the most recently used first."""
        if not self.root.is_dir():
            return []
        found = []
        for folder in self.root.iterdir():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # another process may be evicting it
                about = folder / ("progress.json" if folder.name.endswith(_PART) else "entry.json")
                size = sum(file.stat().st_size for file in folder.iterdir())
                found.append((folder.name, size, about.stat().st_mtime, json.loads(about.read_text())["identity"]))
        return sorted(found, key=lambda entry: -entry[2])

    def clear(self) -> tuple[int, int]:
        """Removes all that is not in use. Returns how many entries went and how many stayed."""
        gone = sum(self._remove(name) for name, *_ in self.entries())
        return gone, len(self.entries())

    @classmethod
    def release(cls) -> None:
        """Ends this process' use of its entries, so that they may be evicted."""
        for file in cls._in_use.values():
            file.close()
        cls._in_use.clear()

    # --- within -----------------------------------------------------------------------------------------------------

    def _folder(self, kind: str, identity: Identity) -> Path:
        return self.root / f"{kind}-{digest(identity)}"

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Makes the root; where it or what is in it cannot be written, that is said."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            yield
        except Refused:
            raise
        except OSError as error:
            raise Refused(
                f"{self.root} cannot be written ({error.strerror}). Features need a folder to be kept in, on a disk with room. "
                "Type features.dir=<folder>."
            ) from error

    def _lock_file(self, folder: Path) -> Path:
        return self.root / f".{folder.name}.lock"

    @contextlib.contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        # A process that holds the entry in use has it whole: it must not wait for itself.
        if folder in self._in_use:
            yield
            return
        with open(self._lock_file(folder), "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _use(self, folder: Path) -> None:
        if folder not in self._in_use:
            # A second file, because the lock file is held exclusively by another handle of this very process.
            file = open(self.root / f".{folder.name}.use", "ab")  # noqa: SIM115 - held until release
            fcntl.flock(file, fcntl.LOCK_SH)
            self._in_use[folder] = file
        os.utime(folder / "entry.json")

    def _open(self, folder: Path) -> Entry | None:
        about = folder / "entry.json"
        if not about.is_file():
            return None
        stamp = (str(folder), about.stat().st_ino)
        try:
            meta = json.loads(about.read_text())
            rows = np.load(folder / "rows.npy", mmap_mode="r")
            whole = stamp in self._verified or _checksum(rows) == meta["crc32"]
        except (ValueError, KeyError, OSError):
            whole = False
        if not whole:
            log.warning("%s was damaged and is computed anew", folder)
            shutil.rmtree(folder)
            return None
        self._verified.add(stamp)
        return Entry(folder, rows, meta["notes"])

    def _compute(
        self, folder: Path, new: _Progress, shape: tuple[int, ...], dtype: str, produce: Produce, batch: int, start: int
    ) -> Generator[np.ndarray, None, None]:
        part = folder.with_name(f"{folder.name}{_PART}")
        rows, progress = self._begun(part, new, shape, dtype) or self._begin(part, new, shape, dtype)
        given, row_bytes, noted = start, max(1, rows[:1].nbytes), time.monotonic()
        try:
            with contextlib.closing(produce(rows, progress.done, progress.notes)) as producing:
                for done in itertools.chain([progress.done], producing):
                    if done * row_bytes // _WINDOW_BYTES > progress.done * row_bytes // _WINDOW_BYTES:
                        _let_go(rows)
                    with interruption.held():  # the two belong together
                        progress.crc32 = zlib.crc32(np.ascontiguousarray(rows[progress.done : done]).data, progress.crc32)
                        progress.done = done
                    while given < done and (done - given >= batch or done == shape[0]):
                        piece = rows[given : min(given + batch, done)]
                        given += len(piece)
                        yield piece
                    if time.monotonic() - noted >= _PROGRESS_SECONDS:
                        noted = time.monotonic()
                        _write_aside(part / "progress.json", asdict(progress))
            rows.flush()
            _write_aside(part / "entry.json", {"identity": progress.identity, "crc32": progress.crc32, "notes": progress.notes})
            part.replace(folder)
            (folder / "progress.json").unlink()
        except Refused:  # the user has to put something right, which makes it another array
            shutil.rmtree(part, ignore_errors=True)
            raise
        except BaseException:
            with contextlib.suppress(OSError):
                _write_aside(part / "progress.json", asdict(progress))
            raise

    def _begin(self, part: Path, new: _Progress, shape: tuple[int, ...], dtype: str) -> tuple[np.memmap, _Progress]:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            rows = np.lib.format.open_memmap(part / "rows.npy", mode="w+", dtype=dtype, shape=shape)
            self._reserve(part / "rows.npy")
            _write_aside(part / "progress.json", asdict(new))
        except (Refused, OSError):
            shutil.rmtree(part, ignore_errors=True)
            raise
        return rows, new

    def _begun(self, part: Path, new: _Progress, shape: tuple[int, ...], dtype: str) -> tuple[np.memmap, _Progress] | None:
        """What an earlier process has done of an array, if it can be gone on with."""
        if not (part / "progress.json").is_file():
            return None
        try:
            progress = _Progress(**json.loads((part / "progress.json").read_text()))
            rows = np.lib.format.open_memmap(part / "rows.npy", mode="r+")
            whole = (rows.shape, rows.dtype) == (shape, np.dtype(dtype)) and _checksum(rows[: progress.done]) == progress.crc32
        except (ValueError, KeyError, TypeError, OSError):
            whole = False
        if not whole:
            log.warning("%s was damaged and is computed anew", part)
            return None
        if progress.step != new.step:
            log.info("%s was computed %d at a time, not %d: it is computed anew", part.name, progress.step, new.step)
            return None
        if progress.done:
            log.info("%s: going on from %s of %s", part.name.removesuffix(_PART), f"{progress.done:,}", f"{shape[0]:,}")
        return rows, progress

    def _reserve(self, path: Path) -> None:
        """Takes the disk space at once: running out of it later, while a mapped file is written, would kill the process."""
        with path.open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise Refused(
                    f"{self.root} has no room for {size / 1e9:.1f} GB of features ({error.strerror}). They need a disk that does. "
                    "Type features.dir=<folder>, features.dtype=float16 for half of it, or make clear."
                ) from error

    def _evict(self) -> None:
        entries = self.entries()
        total = sum(size for _, size, *_ in entries)
        for name, size, *_ in reversed(entries):
            if total <= self.max_bytes:
                return
            total -= size if self._remove(name) else 0

    def _remove(self, name: str) -> bool:
        """Removes an entry unless some process uses it, or is about to."""
        folder, entry = self.root / name, self.root / name.removesuffix(_PART)
        if folder in self._in_use:
            return False
        with open(self._lock_file(entry), "ab") as lock, open(self.root / f".{entry.name}.use", "ab") as use:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            shutil.rmtree(folder, ignore_errors=True)
        return True


def _checksum(rows: np.ndarray) -> int:
    crc = 0
    for piece in _pieces(rows, max(1, _WINDOW_BYTES // 4 // max(1, rows[:1].nbytes))):
        crc = zlib.crc32(np.ascontiguousarray(piece).data, crc)
    return crc


def _pieces(rows: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    """An array's rows in order, without holding more of it in memory than a window."""
    held = 0
    for start in range(0, len(rows), batch):
        piece = rows[start : start + batch]
        yield piece
        held += piece.nbytes
        if held > _WINDOW_BYTES:
            _let_go(rows)
            held = 0


def _let_go(rows: np.ndarray) -> None:
    """Gives back the memory behind a mapped file; what was written stays, and what is read again comes from the file."""
    mapped = getattr(rows, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _write_aside(path: Path, about: dict[str, Any]) -> None:
    """Writes a JSON file beside its place and renames it."""
    aside = path.with_suffix(".aside")
    with aside.open("w") as file:
        json.dump(about, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
