"""Arrays kept on disk under what they were computed from, so that no attempt computes again what another one has.

An entry is a folder `<kind>-<digest of its identity>/` with `rows.npy` and `entry.json` (identity, checksum). It is written beside
its place, in `<its name>.part/`, and renamed, so that it is whole or absent. A part's `progress.json` says how many of its rows are done, and
their checksum: where a process was cut off, the next one goes on. A lock file an entry lets one process compute while others wait, and keeps
what is in use from being evicted.

A shard is some rows of an array, computed by a job of its own and kept as an entry whose identity says which. Who needs the array takes from its
shards what they have, computes what they lack, and removes them.

The folder may lie on storage that several hosts share, as long as `flock` on it holds between them: on NFS it does (Linux 2.6.12 and later) unless
it is mounted with `nolock` or `local_lock`. Where it does not hold even between two handles of one process, the folder is refused; where it holds
within each host alone, nobody can tell, and two hosts may compute the same, which fails in one of them and gives wrong rows in none. When a host
dies, the server gives its locks up, and what it left is gone on with.
"""

import contextlib
import copy
import fcntl
import hashlib
import itertools
import json
import logging
import mmap
import os
import re
import shutil
import time
import tokenize
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from dogbreeds import interruption
from dogbreeds.spec import Refused

log = logging.getLogger(__name__)

Identity = dict[str, Any]  # plain values only
Notes = dict[str, list[int]]  # row numbers of the array, a shard's too, under what is said of these rows
# Fills an array from a row on to its end, and yields the number of rows done. It may add to its notes, which are those of an earlier process where
# it goes on: whenever it yields, they must be of the rows that are done. What it is given may be the first rows of the array alone.
Produce = Callable[[np.ndarray, int, Notes], Generator[int, None, None]]

_WINDOW_BYTES = 64 << 20  # how much of a mapped array is held in memory while it is gone through
_PROGRESS_SECONDS = 1.0  # between two notes of how far an array has come
_PART = ".part"
_PROGRESS = "progress.json"
_SHARD = "shard"  # the key of an identity that says which rows of an array it has
_NAME = re.compile(r"\.?([a-z_]+-[0-9a-f]{24})(\.part(?:-[0-9a-f]{8})?)?")  # an entry's, or a part's; earlier versions hid theirs


class Unwritable(Refused):
    """What is kept cannot be written. What has been computed stays: with a disk that can be, it is gone on with."""


@dataclass(frozen=True)
class Entry:
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
        return array if len(self) == self.total else array | {_SHARD: asdict(self)}


@dataclass(frozen=True)
class Listed:
    """What is known of an array on disk without reading it.

    Attributes:
        name: of its folder.
        size: bytes of its rows.
        used: time of last use, or of the last progress where it is unfinished.
        identity: empty where it cannot be read.
        unfinished: rows done and in all; None where it is whole.
    """

    name: str
    size: int
    used: float
    identity: Identity
    unfinished: tuple[int, int] | None


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
    _locks_hold: set[Path] = set()  # folders in which this process has seen them do so

    def __init__(self, root: Path, max_bytes: int):
        self.root, self.max_bytes = root, max_bytes

    def array(self, kind: str, identity: Identity, shape: tuple[int, ...], dtype: str, produce: Produce, step: int = 1) -> Entry:
        """The whole array, computed if it is not there.

        Args:
            kind: the first half of its name.
            identity: what it is computed from.
            shape: rows first.
            dtype: of its values.
            produce: computes it, or what an earlier process left of it.
            step: rows that are computed together, where the bits of each may depend on the others. What was begun in other steps is begun anew.
        """
        row_bytes = max(1, int(np.prod(shape[1:])) * np.dtype(dtype).itemsize)
        batch = max(1, _WINDOW_BYTES // row_bytes)
        with contextlib.closing(self.stream(kind, identity, shape, dtype, produce, batch, step=step)) as pieces:
            for _ in pieces:
                pass
        folder = self._folder(kind, identity)
        entry = self._open(folder, identity, shape, dtype)
        if entry is None:
            raise Refused(
                f"{folder} went away while it was being used. Kept arrays must be left alone while an attempt runs. Run the same command again."
            )
        return entry

    def has(self, kind: str, identity: Identity, shape: tuple[int, ...], dtype: str) -> bool:
        """Whether the whole array is there, as far as is seen without reading it."""
        return _read(self._folder(kind, identity) / "entry.json", identity, shape, dtype) is not None

    def stream(
        self,
        kind: str,
        identity: Identity,
        shape: tuple[int, ...],
        dtype: str,
        produce: Produce,
        batch: int,
        start: int = 0,
        step: int = 1,
    ) -> Generator[np.ndarray, None, None]:
        """The array's rows in order, batch by batch from a row on, while they are being computed if they are not there yet.

        Who does not take them all must close it: that keeps what is done, and lets others go on.
        """
        folder = self._folder(kind, identity)
        with _writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        with self._locked(folder):
            entry = self._open(folder, identity, shape, dtype)
            if entry is None:
                part = _Part(folder.with_name(f"{folder.name}{_PART}"), _Progress(identity, step), shape, dtype)
                with part.kept():
                    with self._shards(kind, identity, shape, dtype, step) as shards:
                        yield from _computed(part, _joined(kind, shards, produce) if shards else produce, batch, start)
                    part.settle()
                    self._remove_shards(kind, identity)  # before it is an entry: nobody looks for shards of one
                    part.finish(folder)
                self._verified.add(_stamp(folder))  # its checksum is of what was written just now
                self._use(folder)
                self._evict()
                return
            self._use(folder)
        yield from _pieces(entry.rows, batch, start)

    def entries(self) -> list[Listed]:
        """What is kept, whole or unfinished, the most recently used first."""
        if not self.root.is_dir():
            return []
        with _writing(self.root):
            folders = list(self.root.iterdir())
        found = []
        for folder in folders:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # another process evicts it, or another user hides it
                found.append(_listed(folder))
        return sorted((listed for listed in found if listed is not None), key=lambda listed: -listed.used)

    def clear(self) -> tuple[int, int]:
        """Removes all that is not in use. Returns how many entries went and how many stayed."""
        gone = sum(self._remove(listed.name) for listed in self.entries())
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

    def _lock_file(self, folder: Path) -> Path:
        return self.root / f".{folder.name}.lock"

    @contextlib.contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        path = self._lock_file(folder)
        with contextlib.ExitStack() as opened:
            with _writing(path):
                fcntl.flock(opened.enter_context(_lockable(path)), fcntl.LOCK_EX)
                self._check_locks_hold(path)
                os.scandir(self.root).close()  # what another host did meanwhile: a network file system looks at a folder anew when it is opened
            yield

    def _check_locks_hold(self, locked: Path) -> None:
        """Refuses a folder where a lock that is held can be taken once more."""
        if self.root in self._locks_hold:
            return
        with _lockable(locked) as again, contextlib.suppress(BlockingIOError):
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise Refused(
                f"{self.root} is on a file system where locks do not hold. Kept features need locks, so that jobs do not write over each other. "
                "Type features.dir=<local folder>, or mount it with locks."
            )
        self._locks_hold.add(self.root)

    @contextlib.contextmanager
    def _shards(self, kind: str, identity: Identity, shape: tuple[int, ...], dtype: str, step: int) -> Iterator[list[tuple[Shard, Entry]]]:
        """The shards of an array that can be used, in the order of their rows, and in use within."""
        found: list[tuple[Shard, Entry]] = []
        try:
            for listed in self._listed_shards(kind, identity):
                shard = Shard(**listed.identity[_SHARD])
                if listed.unfinished is not None:
                    continue
                if shard.step != step:
                    log.warning("%s was computed %s at a time, not %s: it is not used", listed.name, shard.step, step)
                    continue
                folder = self.root / listed.name
                with self._locked(folder):
                    entry = self._open(folder, listed.identity, (len(shard), *shape[1:]), dtype)
                    if entry is not None:
                        self._use(folder)
                        found.append((shard, entry))
            yield sorted(found, key=lambda pair: pair[0].first)
        finally:
            for _, entry in found:
                self._in_use.pop(entry.folder).close()

    def _listed_shards(self, kind: str, identity: Identity) -> list[Listed]:
        """What there is of an array's shards, whole or unfinished."""
        if _SHARD in identity:
            return []
        ours = [listed for listed in self.entries() if listed.name.startswith(f"{kind}-{digest(listed.identity)}") and _SHARD in listed.identity]
        return [listed for listed in ours if digest({name: value for name, value in listed.identity.items() if name != _SHARD}) == digest(identity)]

    def _remove_shards(self, kind: str, identity: Identity) -> None:
        for listed in self._listed_shards(kind, identity):
            with contextlib.suppress(Unwritable):  # another user's
                self._remove(listed.name)

    def _use(self, folder: Path) -> None:
        with _writing(folder):
            if folder not in self._in_use:
                # A second file, because the lock file is held exclusively by another handle of this very process.
                file = _lockable(self.root / f".{folder.name}.use")
                fcntl.flock(file, fcntl.LOCK_SH)
                self._in_use[folder] = file
            os.utime(folder / "entry.json")
            (folder / _PROGRESS).unlink(missing_ok=True)  # it was of use until the entry was in its place

    def _open(self, folder: Path, identity: Identity, shape: tuple[int, ...], dtype: str) -> Entry | None:
        if not folder.exists():
            return None
        found = _read(folder / "entry.json", identity, shape, dtype)
        if found is None or not (_stamp(folder) in self._verified or _checksum(found[0]) == found[1].crc32):
            log.warning("%s was damaged and is computed anew", folder)
            with _writing(folder):
                shutil.rmtree(folder)
            return None
        self._verified.add(_stamp(folder))
        return Entry(folder, found[0], found[1].notes)

    def _evict(self) -> None:
        entries = self.entries()
        total = sum(listed.size for listed in entries)
        for listed in reversed(entries):
            if total <= self.max_bytes:
                return
            with contextlib.suppress(Unwritable):  # another user's: what was computed is of use all the same
                total -= listed.size if self._remove(listed.name) else 0

    def _remove(self, name: str) -> bool:
        """Removes an entry or a part unless some process uses it, is about to, or is computing it."""
        named = _NAME.fullmatch(name)
        entry = self.root / (named[1] if named else name)
        if entry in self._in_use:
            return False
        with _writing(self.root / name), _lockable(self._lock_file(entry)) as lock, _lockable(self.root / f".{entry.name}.use") as use:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            with contextlib.suppress(FileNotFoundError):  # another process was first
                shutil.rmtree(self.root / name)
        return True


@dataclass(frozen=True)
class _Progress:
    """How far an array has come: rows that are done, `step` of them at a time, their checksum, and what their producer noted."""

    identity: Identity
    step: int
    done: int = 0
    crc32: int = 0
    notes: Notes = field(default_factory=dict)


class _Part:
    """An array on its way; what an earlier process has done of it is gone on with. The entry's lock must be held.

    Attributes:
        rows: the array at its full size, memory-mapped.
        notes: for its producer.
    """

    def __init__(self, folder: Path, new: _Progress, shape: tuple[int, ...], dtype: str):
        self._folder, self._file = folder, folder / _PROGRESS
        with _writing(folder):
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
        before, window = self._progress, max(1, _WINDOW_BYTES // max(1, self.rows[:1].nbytes))
        crc = zlib.crc32(np.ascontiguousarray(self.rows[before.done : done]).data, before.crc32)
        self._progress = replace(before, done=done, crc32=crc, notes=copy.deepcopy(self.notes))  # at once: an interruption finds all or nothing of it
        if done // window > before.done // window:
            _let_go(self.rows)
        if time.monotonic() - self._noted >= _PROGRESS_SECONDS:
            self._note()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """However the block is cut off, what is done stays; unless there is nothing, or the user must put something right, which makes it another
        array."""
        try:
            yield
        except BaseException as end:
            with interruption.held(), contextlib.suppress(Unwritable):  # the last note stays, and what has ended the block is said
                if self.done == 0 or (isinstance(end, Refused) and not isinstance(end, Unwritable)):
                    shutil.rmtree(self._folder, ignore_errors=True)
                else:
                    self._note()
            raise

    def settle(self) -> None:
        """Sees all its rows to the disk, and on a network file system to the server, where another host may read them."""
        if self.done != len(self.rows):
            raise RuntimeError(f"the producer of {self._folder.with_suffix('')} ended after {self.done} of {len(self.rows)} rows")
        with _writing(self._folder):
            self.rows.flush()
            _sync(self._folder / "rows.npy")
        self._note()

    def finish(self, place: Path) -> None:
        """Makes it an entry, once it is settled."""
        about = {"identity": self._progress.identity, "crc32": self._progress.crc32, "notes": self._progress.notes}
        with _writing(place):
            _write_aside(self._folder / "entry.json", about)
            _sync(self._folder / "entry.json")
            self._folder.replace(place)

    def _begun(self, new: _Progress, shape: tuple[int, ...], dtype: str) -> _Progress | None:
        """How far an earlier process came, if that can be gone on with."""
        if not self._folder.exists():
            return None
        found = _read(self._file, new.identity, shape, dtype)
        if not self._file.exists():  # cut off before the first note of it
            log.warning("%s does not say what of it is done: it is computed anew", self._folder)
        elif found is None or _checksum(found[0][: found[1].done]) != found[1].crc32:
            log.warning("%s was damaged and is computed anew", self._folder)
        elif found[1].step != new.step:
            log.warning("%s was computed %s at a time, not %s: it is computed anew", self._folder.name, found[1].step, new.step)
        else:
            return found[1]
        shutil.rmtree(self._folder)
        return None

    def _begin(self, new: _Progress, shape: tuple[int, ...], dtype: str) -> _Progress:
        self._progress = new
        try:
            self._folder.mkdir()
            np.lib.format.open_memmap(self._folder / "rows.npy", mode="w+", dtype=dtype, shape=shape)
            _reserve(self._folder / "rows.npy")
            self._note()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return new

    def _note(self) -> None:
        with _writing(self._file):
            _write_aside(self._file, asdict(self._progress))
        self._noted = time.monotonic()


def _computed(part: _Part, produce: Produce, batch: int, start: int) -> Generator[np.ndarray, None, None]:
    """A part's rows from a row on, in order, batch by batch: those that are done, then the others while they are being computed."""
    given, total = start, len(part.rows)
    with contextlib.closing(produce(part.rows, part.done, part.notes)) as producing:
        for done in itertools.chain([part.done], producing if part.done < total else ()):
            part.advance(done)
            while given < done and (done - given >= batch or done == total):
                first, given = given, min(given + batch, done)
                yield part.rows[first:given]


def _joined(kind: str, shards: list[tuple[Shard, Entry]], produce: Produce) -> Produce:
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


def _copied(rows: np.ndarray, begin: int, shard: Shard, entry: Entry, notes: Notes) -> Generator[int, None, None]:
    """Copies a shard's rows from `begin` on, whole steps at a time: without the shard, whoever goes on would compute from there."""
    steps = max(1, _WINDOW_BYTES // 4 // max(1, shard.step * entry.rows[:1].nbytes))
    for piece in _pieces(entry.rows, steps * shard.step, begin - shard.first):
        end = begin + len(piece)
        rows[begin:end] = piece
        for name, said in entry.notes.items():
            notes.setdefault(name, []).extend(row for row in said if begin <= row < end)
        yield end
        begin = end


def _read(file: Path, identity: Identity, shape: tuple[int, ...], dtype: str) -> tuple[np.ndarray, _Progress] | None:
    """The rows beside a file, read-only, and what it says of them; None where they are damaged, as far as is seen without reading them all."""
    try:
        rows = _mapped(file.with_name("rows.npy"))
        said = _Progress(**{"step": 1, "done": len(rows)} | json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, RecursionError):  # the last of brackets without end
        return None
    same = (rows.shape, rows.dtype, said.identity) == (shape, np.dtype(dtype), json.loads(json.dumps(identity)))
    plausible = isinstance(said.done, int) and 0 <= said.done <= len(rows) and isinstance(said.notes, dict)
    return (rows, said) if same and plausible and rows.flags.c_contiguous else None


def _mapped(path: Path) -> np.ndarray:
    """An array on disk, read-only. Raises `OSError` or `ValueError` where there is none."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (SyntaxError, tokenize.TokenError) as error:  # of NumPy, where a header is damaged
        raise ValueError(str(error)) from error


def _listed(folder: Path) -> Listed | None:
    """What is known of a folder; None where it is not one of ours. It may go away meanwhile."""
    named = _NAME.fullmatch(folder.name)
    if named is None or not folder.is_dir():
        return None
    about, rows = folder / (_PROGRESS if named[2] else "entry.json"), folder / "rows.npy"
    used = (about if about.exists() else folder).stat().st_mtime
    size = rows.stat().st_size if rows.exists() else 0
    try:
        said = json.loads(about.read_text())
        unfinished = (said["done"], len(_mapped(rows))) if named[2] else None
        return Listed(folder.name, size, used, said["identity"], unfinished)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Listed(folder.name, size, used, {}, (0, 0) if named[2] else None)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Says that a path cannot be written. No rows may be given away within: what happens to who takes them is another matter."""
    try:
        yield
    except OSError as error:
        raise Unwritable(
            f"{path} cannot be written ({error.strerror}). Features need a folder to be kept in, on a disk with room; once there is, the same "
            "command goes on from what is done. Type features.dir=<folder>."
        ) from error


def _reserve(path: Path) -> None:
    """Takes the disk space at once: running out of it later, while a mapped file is written, would kill the process."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise Unwritable(
                f"{path.parent.parent} has no room for {size / 1e9:.1f} GB of features ({error.strerror}). They need a disk that does. "
                "Type features.dir=<folder>, features.dtype=float16 for half of it, or make clear."
            ) from error


def _stamp(folder: Path) -> tuple[str, int]:
    """Of an entry: another one in its place has another."""
    return str(folder), (folder / "entry.json").stat().st_ino


def _checksum(rows: np.ndarray) -> int:
    crc = 0
    for piece in _pieces(rows, max(1, _WINDOW_BYTES // 4 // max(1, rows[:1].nbytes))):
        crc = zlib.crc32(np.ascontiguousarray(piece).data, crc)
    return crc


def _pieces(rows: np.ndarray, batch: int, start: int = 0) -> Iterator[np.ndarray]:
    """An array's rows in order, from a row on, without holding more of it in memory than a window."""
    held = 0
    for first in range(start, len(rows), batch):
        piece = rows[first : first + batch]
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
    aside = path.with_name("aside")
    try:
        with aside.open("w") as file:
            json.dump(about, file, indent=1)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _lockable(path: Path) -> IO[bytes]:
    return path.open("a+b")  # NFS grants a shared lock on what is open for reading, and an exclusive one on what is open for writing


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
