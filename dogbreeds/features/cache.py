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
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.features.memmap import WINDOW_BYTES, Unwritable, checksum, opened, pieces, writing
from dogbreeds.features.partial_array import (
    PROGRESS,
    SHARD,
    CachedArray,
    Identity,
    PartialArray,
    Produce,
    Progress,
    Shard,
    computed,
    joined,
    read,
)

log = logging.getLogger(__name__)

_PART = ".part"
# An entry's, or a part's; earlier versions hid theirs
_NAME = re.compile(r"\.?([a-z_]+-[0-9a-f]{24})(\.part(?:-[0-9a-f]{8})?)?")


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


class FeatureCache:
    """The folder of kept arrays.

    Args:
        root: made when something is kept.
        max_bytes: beyond this the least recently used entries go, but none that is in use.
    """

    # Entries whose checksum this process has compared
    _verified: set[tuple[str, int]] = set()
    # Shared locks, held until the process ends or `release`
    _in_use: dict[Path, IO[bytes]] = {}
    # Folders in which this process has seen them do so
    _locks_hold: set[Path] = set()

    def __init__(self, root: Path, max_bytes: int):
        self.root, self.max_bytes = root, max_bytes

    def array(
        self, kind: str, identity: Identity, shape: tuple[int, ...], dtype: str, produce: Produce, step: int = 1
    ) -> CachedArray:
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
        batch = max(1, WINDOW_BYTES // row_bytes)
        with contextlib.closing(self.stream(kind, identity, shape, dtype, produce, batch, step=step)) as batches:
            for _ in batches:
                pass
        folder = self._folder(kind, identity)
        entry = self._open(folder, identity, shape, dtype)
        if entry is None:
            raise UserError(
                f"{folder} went away while it was being used. Kept arrays must be left alone while an attempt runs. Run"
                " the same command again."
            )
        return entry

    def has(self, kind: str, identity: Identity, shape: tuple[int, ...], dtype: str) -> bool:
        """Whether the whole array is there, as far as is seen without reading it."""
        return read(self._folder(kind, identity) / "entry.json", identity, shape, dtype) is not None

    def shards_step(self, kind: str, identity: Identity) -> int | None:
        """How many rows at a time the shards of an array were computed in; None where there are none, or where they differ."""
        steps = {
            listed.identity[SHARD]["step"]
            for listed in self._listed_shards(kind, identity)
            if listed.unfinished is None
        }
        return steps.pop() if len(steps) == 1 else None

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
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        with self._locked(folder):
            entry = self._open(folder, identity, shape, dtype)
            if entry is None:
                part = PartialArray(folder.with_name(f"{folder.name}{_PART}"), Progress(identity, step), shape, dtype)
                with part.kept():
                    with self._shards(kind, identity, shape, dtype, step) as shards:
                        yield from computed(part, joined(kind, shards, produce) if shards else produce, batch, start)
                    part.settle()
                    # Before it is an entry: nobody looks for shards of one
                    self._remove_shards(kind, identity, step)
                    part.finish(folder)
                # Its checksum is of what was written just now
                self._verified.add(_stamp(folder))
                self._use(folder)
                self._evict()
                return
            self._use(folder)
        yield from pieces(entry.rows, batch, start)

    def entries(self) -> list[Listed]:
        """What is kept, whole or unfinished, the most recently used first."""
        if not self.root.is_dir():
            return []
        with writing(self.root):
            folders = list(self.root.iterdir())
        found = []
        for folder in folders:
            # Another process evicts it, or another user hides it
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
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
        with contextlib.ExitStack() as files:
            with writing(path):
                fcntl.flock(files.enter_context(_lockable(path)), fcntl.LOCK_EX)
                self._check_locks_hold(path)
                # What another host did meanwhile: a network file system looks at a folder anew when it is opened
                os.scandir(self.root).close()
            yield

    def _check_locks_hold(self, locked: Path) -> None:
        """Refuses a folder where a lock that is held can be taken once more."""
        if self.root in self._locks_hold:
            return
        with _lockable(locked) as again, contextlib.suppress(BlockingIOError):
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise UserError(
                f"{self.root} is on a file system where locks do not hold. Kept features need locks, so that jobs do"
                " not write over each other. Type features.dir=<local folder>, or mount it with locks."
            )
        self._locks_hold.add(self.root)

    @contextlib.contextmanager
    def _shards(
        self, kind: str, identity: Identity, shape: tuple[int, ...], dtype: str, step: int
    ) -> Iterator[list[tuple[Shard, CachedArray]]]:
        """The shards of an array that can be used, in the order of their rows, and in use within."""
        found: list[tuple[Shard, CachedArray]] = []
        try:
            for listed in self._listed_shards(kind, identity):
                shard = Shard(**listed.identity[SHARD])
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
        if SHARD in identity:
            return []
        ours = [
            listed
            for listed in self.entries()
            if listed.name.startswith(f"{kind}-{digest(listed.identity)}") and SHARD in listed.identity
        ]
        return [
            listed
            for listed in ours
            if digest({name: value for name, value in listed.identity.items() if name != SHARD}) == digest(identity)
        ]

    def _remove_shards(self, kind: str, identity: Identity, step: int) -> None:
        for listed in self._listed_shards(kind, identity):
            # What was computed otherwise was of no use here, and may be elsewhere
            if listed.identity[SHARD]["step"] == step:
                # Another user's
                with contextlib.suppress(Unwritable):
                    self._remove(listed.name)

    def _use(self, folder: Path) -> None:
        with writing(folder):
            if folder not in self._in_use:
                # A second file, because the lock file is held exclusively by another handle of this very process.
                file = _lockable(self.root / f".{folder.name}.use")
                fcntl.flock(file, fcntl.LOCK_SH)
                self._in_use[folder] = file
            os.utime(folder / "entry.json")
            # It was of use until the entry was in its place
            (folder / PROGRESS).unlink(missing_ok=True)

    def _open(self, folder: Path, identity: Identity, shape: tuple[int, ...], dtype: str) -> CachedArray | None:
        if not folder.exists():
            return None
        found = read(folder / "entry.json", identity, shape, dtype)
        if found is None or not (_stamp(folder) in self._verified or checksum(found[0]) == found[1].crc32):
            log.warning("%s was damaged and is computed anew", folder)
            with writing(folder):
                shutil.rmtree(folder)
            return None
        self._verified.add(_stamp(folder))
        return CachedArray(folder, found[0], found[1].notes)

    def _evict(self) -> None:
        entries = self.entries()
        total = sum(listed.size for listed in entries)
        for listed in reversed(entries):
            if total <= self.max_bytes:
                return
            # Another user's: what was computed is of use all the same
            with contextlib.suppress(Unwritable):
                total -= listed.size if self._remove(listed.name) else 0

    def _remove(self, name: str) -> bool:
        """Removes an entry or a part unless some process uses it, is about to, or is computing it."""
        named = _NAME.fullmatch(name)
        entry = self.root / (named[1] if named else name)
        if entry in self._in_use:
            return False
        with (
            writing(self.root / name),
            _lockable(self._lock_file(entry)) as lock,
            _lockable(self.root / f".{entry.name}.use") as use,
        ):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            # Another process was first
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.root / name)
        return True


def _listed(folder: Path) -> Listed | None:
    """What is known of a folder; None where it is not one of ours. It may go away meanwhile."""
    named = _NAME.fullmatch(folder.name)
    if named is None or not folder.is_dir():
        return None
    about, rows = folder / (PROGRESS if named[2] else "entry.json"), folder / "rows.npy"
    used = (about if about.exists() else folder).stat().st_mtime
    size = rows.stat().st_size if rows.exists() else 0
    try:
        said = json.loads(about.read_text())
        unfinished = (said["done"], len(opened(rows))) if named[2] else None
        return Listed(folder.name, size, used, said["identity"], unfinished)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Listed(folder.name, size, used, {}, (0, 0) if named[2] else None)


def _stamp(folder: Path) -> tuple[str, int]:
    """Of an entry: another one in its place has another."""
    return str(folder), (folder / "entry.json").stat().st_ino


def _lockable(path: Path) -> IO[bytes]:
    # NFS grants a shared lock on what is open for reading, and an exclusive one on what is open for writing
    return path.open("a+b")
