"""Arrays kept on disk under what they were computed from, so that no attempt computes again what another one has.

An entry is a folder `<kind>-<digest of its identity>/` with `rows.npy` and `entry.json` (identity, checksum). It is written beside
its place and renamed, so that it is whole or absent. A lock file an entry lets one process compute while others wait, and keeps what is
in use from being evicted.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import mmap
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from dogbreeds.spec import Refused

log = logging.getLogger(__name__)

Identity = dict[str, Any]  # plain values only
Produce = Callable[[np.ndarray], Generator[int, None, dict[str, Any]]]  # fills the array, yields rows done so far, returns notes

_WINDOW_BYTES = 64 << 20  # how much of a mapped array is held in memory while it is gone through


@dataclass(frozen=True)
class Entry:
    """A whole array on disk.

    Attributes:
        folder: where it is.
        rows: the array, memory-mapped and read-only.
        notes: what its producer returned.
    """

    folder: Path
    rows: np.ndarray
    notes: dict[str, Any]


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

    def array(self, kind: str, identity: Identity, shape: tuple[int, ...], dtype: str, produce: Produce) -> Entry:
        """The whole array, computed if it is not there."""
        row_bytes = max(1, int(np.prod(shape[1:])) * np.dtype(dtype).itemsize)
        for _ in self.stream(kind, identity, shape, dtype, produce, batch=max(1, _WINDOW_BYTES // row_bytes)):
            pass
        entry = self._open(self._folder(kind, identity))
        if entry is None:
            raise Refused(
                f"{self._folder(kind, identity)} went away while it was being used. Kept arrays must be left alone while an attempt runs. "
                "Run the same command again."
            )
        return entry

    def stream(self, kind: str, identity: Identity, shape: tuple[int, ...], dtype: str, produce: Produce, batch: int) -> Iterator[np.ndarray]:
        """The array's rows in order, batch by batch, while they are being computed if they are not there yet."""
        folder = self._folder(kind, identity)
        self._make_root()
        with self._locked(folder):
            entry = self._open(folder)
            if entry is None:
                yield from self._compute(folder, identity, shape, dtype, produce, batch)
                self._use(folder)
                self._evict()
                return
            self._use(folder)
        yield from _pieces(entry.rows, batch)

    def entries(self) -> list[tuple[str, int, float, dict[str, Any]]]:
        """Folder name, bytes, time of last use and identity of each entry, the most recently used first."""
        if not self.root.is_dir():
            return []
        found = []
        for folder in self.root.iterdir():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # another process may be evicting it
                about = folder / "entry.json"
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

    def _make_root(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refused(
                f"{self.root} cannot be written ({error.strerror}). Features need a folder to be kept in. Type features.dir=<folder>."
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

    def _compute(self, folder: Path, identity: Identity, shape: tuple[int, ...], dtype: str, produce: Produce, batch: int) -> Iterator[np.ndarray]:
        for leftover in self.root.glob(f".{folder.name}.part-*"):  # of a process that was killed: this one holds the lock
            shutil.rmtree(leftover)
        part = self.root / f".{folder.name}.part-{uuid.uuid4().hex[:8]}"
        part.mkdir()
        try:
            rows = np.lib.format.open_memmap(part / "rows.npy", mode="w+", dtype=dtype, shape=shape)
            self._reserve(part / "rows.npy")
            crc, given, row_bytes = 0, 0, max(1, rows[:1].nbytes)
            producing = produce(rows)
            while True:
                try:
                    done = next(producing)
                except StopIteration as stop:
                    notes = stop.value
                    break
                while given < done and (done - given >= batch or done == shape[0]):
                    piece = rows[given : min(given + batch, done)]
                    crc = zlib.crc32(np.ascontiguousarray(piece).data, crc)
                    given += len(piece)
                    yield piece
                    if given * row_bytes // _WINDOW_BYTES > (given - len(piece)) * row_bytes // _WINDOW_BYTES:
                        _let_go(rows)
            rows.flush()
            (part / "entry.json").write_text(json.dumps({"identity": identity, "crc32": crc, "notes": notes}, indent=1))
            _sync(part / "entry.json")
            part.replace(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)

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
        folder = self.root / name
        if folder in self._in_use:
            return False
        with open(self._lock_file(folder), "ab") as lock, open(self.root / f".{name}.use", "ab") as use:
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


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
