"""Feature cache: arrays on disk, named by a digest of what they were computed from, so that no run computes one twice.

An entry is a folder `<kind>-<digest of its identity>/` with `rows.npy` and `entry.json` (identity, checksum, notes).
While it is computed, its folder is called `<name>.part/` and has a `progress.json` with the number of complete rows and
their checksum, from which the next process resumes. Renaming the folder makes the entry visible, so an entry is
complete or absent. A lock file per entry lets one process compute while others wait; a second file protects an entry
that is in use from eviction.

A shard is a range of an array's rows, computed by a job of its own and cached as an entry whose identity names the
range. Whoever needs the array copies the rows that its shards hold, computes the missing ones, and removes the shards.

The folder may be on storage that several hosts share if `flock` on it works between them. On NFS it does (Linux 2.6.12
and later) unless it is mounted with `nolock` or `local_lock`. A folder where locks do not even work between two handles
of one process is rejected. Locks that work only within each host cannot be detected: two hosts may then compute the
same array, which fails on one of them and gives wrong rows on none. If a host dies, the server releases its locks, and
another process resumes from its unfinished arrays.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from dogbreeds.core import locks
from dogbreeds.core.errors import UserError
from dogbreeds.core.locks import LockHeldError
from dogbreeds.features.array_info import FOLDER_NAME, ArrayInfo, describe, digest
from dogbreeds.features.memmap import WINDOW_BYTES, CacheWriteError, checksum, explain_write_errors, iterate_batches
from dogbreeds.features.partial_array import (
    ENTRY_FILE,
    PROGRESS_FILE,
    SHARD,
    CachedArray,
    Identity,
    PartialArray,
    Producer,
    RowProgress,
    Shard,
    join_shards,
    read_array,
    stream_rows,
)

log = logging.getLogger(__name__)

_PARTIAL_SUFFIX = ".part"


class FeatureCache:
    """A folder of cached arrays, which any number of processes may share.

    Args:
        root: the folder, created when the first array is cached.
        max_bytes: above this size the least recently used arrays that are not in use are evicted.
    """

    # (folder, inode) of the entries whose checksum this process has verified.
    _verified: set[tuple[str, int]] = set()
    # Shared locks on the entries in use, held until the process ends or calls `release`.
    _in_use: dict[Path, IO[bytes]] = {}
    # Cache folders in which this process has checked that locks work.
    _locks_hold: set[Path] = set()

    def __init__(self, root: Path, max_bytes: int):
        self.root = root
        self.max_bytes = max_bytes

    def get_or_compute(
        self, kind: str, identity: Identity, shape: tuple[int, ...], dtype: str, producer: Producer, step: int = 1
    ) -> CachedArray:
        """Return an array, computing what is missing of it.

        Args:
            kind: first half of its folder's name, such as "features".
            identity: what it is computed from, as plain JSON values.
            shape: rows first.
            dtype: type of its values.
            producer: computes the rows, from the start or from where an earlier process stopped.
            step: rows that are computed together, if the bits of each may depend on the others. Unfinished rows that
                were computed in other steps are discarded.

        Raises:
            UserError: if the cache cannot be written or locked.
        """
        row_bytes = max(1, int(np.prod(shape[1:])) * np.dtype(dtype).itemsize)
        batch_size = max(1, WINDOW_BYTES // row_bytes)
        stream = self.stream(kind, identity, shape, dtype, producer, batch_size, step=step)
        with contextlib.closing(stream) as batches:
            for _ in batches:
                pass
        folder = self._folder(kind, identity)
        entry = self._open(folder, identity, shape, dtype)
        if entry is None:
            raise UserError(
                f"{folder} was removed while it was in use. Cached arrays must not be changed while a command runs. Run"
                " the same command again."
            )
        return entry

    def has(self, kind: str, identity: Identity, shape: tuple[int, ...], dtype: str) -> bool:
        """Tell whether the complete array is cached, without reading its rows."""
        return read_array(self._folder(kind, identity) / ENTRY_FILE, identity, shape, dtype) is not None

    def shard_step(self, kind: str, identity: Identity) -> int | None:
        """Return the step that an array's shards were computed in; None if there are no shards or several steps."""
        steps = {info.identity[SHARD]["step"] for info in self._list_shards(kind, identity) if info.unfinished is None}
        return steps.pop() if len(steps) == 1 else None

    def stream(
        self,
        kind: str,
        identity: Identity,
        shape: tuple[int, ...],
        dtype: str,
        producer: Producer,
        batch_size: int,
        start: int = 0,
        step: int = 1,
    ) -> Generator[np.ndarray, None, None]:
        """Yield an array's rows in order, in batches, while computing those that are missing.

        A caller that stops before the last row must close the generator: this saves the complete rows and releases the
        lock.

        Args:
            kind, identity, shape, dtype, producer, step: as in `get_or_compute`.
            batch_size: rows of a batch; the last one may have fewer.
            start: index of the first row to yield.
        """
        folder = self._folder(kind, identity)
        with explain_write_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        with self._locked(folder):
            entry = self._open(folder, identity, shape, dtype)
            if entry is None:
                partial_folder = folder.with_name(f"{folder.name}{_PARTIAL_SUFFIX}")
                partial = PartialArray(partial_folder, RowProgress(identity, step), shape, dtype)
                with partial.preserved_on_error():
                    with self._usable_shards(kind, identity, shape, dtype, step) as shards:
                        joined = join_shards(kind, shards, producer) if shards else producer
                        yield from stream_rows(partial, joined, batch_size, start)
                    partial.flush()
                    # Remove the shards before the array becomes an entry: nobody looks for an entry's shards.
                    self._remove_shards(kind, identity, step)
                    partial.publish(folder)
                # Its checksum was computed while it was written, so it needs no verification.
                self._verified.add(_inode_key(folder))
                self._use(folder)
                self._evict()
                return
            self._use(folder)
        yield from iterate_batches(entry.rows, batch_size, start)

    def entries(self) -> list[ArrayInfo]:
        """List all arrays, complete or unfinished, the most recently used first."""
        if not self.root.is_dir():
            return []
        with explain_write_errors(self.root):
            folders = list(self.root.iterdir())
        found = []
        for folder in folders:
            # Another process may evict the folder meanwhile, or another user may deny access to it.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                found.append(describe(folder))
        return sorted((info for info in found if info is not None), key=lambda info: -info.last_used)

    def clear(self) -> tuple[int, int]:
        """Remove all arrays that are not in use.

        Returns:
            The numbers of arrays that were removed and that remain.
        """
        removed = sum(self.remove(info.name) for info in self.entries())
        return removed, len(self.entries())

    def remove(self, name: str) -> bool:
        """Remove an entry or unfinished array unless a process uses it, computes it or waits for it."""
        match = FOLDER_NAME.fullmatch(name)
        entry = self.root / (match[1] if match else name)
        if entry in self._in_use:
            return False
        try:
            with (
                explain_write_errors(self.root / name),
                locks.exclusive(self._lock_file(entry), waiting_for=None),
                locks.exclusive(self._use_file(entry), waiting_for=None),
                # Another process may have removed it first.
                contextlib.suppress(FileNotFoundError),
            ):
                shutil.rmtree(self.root / name)
        except LockHeldError:
            return False
        return True

    @classmethod
    def release(cls) -> None:
        """Release this process's locks on the entries it has used, so that they may be evicted."""
        for file in cls._in_use.values():
            file.close()
        cls._in_use.clear()

    def _folder(self, kind: str, identity: Identity) -> Path:
        return self.root / f"{kind}-{digest(identity)}"

    # --- locks ---------------------------------------------------------------

    def _lock_file(self, folder: Path) -> Path:
        return self.root / f".{folder.name}.lock"

    def _use_file(self, folder: Path) -> Path:
        return self.root / f".{folder.name}.use"

    @contextlib.contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Hold the exclusive lock of an entry within the block."""
        path = self._lock_file(folder)
        with contextlib.ExitStack() as stack:
            with explain_write_errors(path):
                stack.enter_context(locks.exclusive(path, waiting_for=f"another process that computes {folder.name}"))
                self._check_locks_hold(path)
                # Opening the folder makes a network file system show what other hosts changed in it meanwhile.
                os.scandir(self.root).close()
            yield

    def _check_locks_hold(self, locked: Path) -> None:
        """Raise `UserError` if a lock that is held can be taken a second time."""
        if self.root in self._locks_hold:
            return
        with contextlib.suppress(LockHeldError), locks.exclusive(locked, waiting_for=None):
            raise UserError(
                f"{self.root} is on a file system where locks do not hold. The feature cache needs locks, so that jobs"
                " do not overwrite each other's rows. Set features.dir=<local folder>, or mount it with locks."
            )
        self._locks_hold.add(self.root)

    def _use(self, folder: Path) -> None:
        """Mark an entry as used now, and as in use by this process."""
        with explain_write_errors(folder):
            if folder not in self._in_use:
                # A second file: another handle of this very process holds the lock file exclusively.
                self._in_use[folder] = locks.shared(
                    self._use_file(folder), waiting_for=f"another process that removes {folder.name}"
                )
            os.utime(folder / ENTRY_FILE)
            # The progress was needed until the entry was in its place.
            (folder / PROGRESS_FILE).unlink(missing_ok=True)

    # --- shards --------------------------------------------------------------

    @contextlib.contextmanager
    def _usable_shards(
        self, kind: str, identity: Identity, shape: tuple[int, ...], dtype: str, step: int
    ) -> Iterator[list[tuple[Shard, CachedArray]]]:
        """Open an array's complete shards of this step, in the order of their rows, in use within the block."""
        found: list[tuple[Shard, CachedArray]] = []
        try:
            for info in self._list_shards(kind, identity):
                shard = Shard(**info.identity[SHARD])
                if info.unfinished is not None:
                    continue
                if shard.step != step:
                    log.warning(
                        "%s was computed in batches of %s rows, not %s: shard skipped", info.name, shard.step, step
                    )
                    continue
                folder = self.root / info.name
                with self._locked(folder):
                    entry = self._open(folder, info.identity, (len(shard), *shape[1:]), dtype)
                    if entry is not None:
                        self._use(folder)
                        found.append((shard, entry))
            yield sorted(found, key=lambda pair: pair[0].first)
        finally:
            for _, entry in found:
                self._in_use.pop(entry.folder).close()

    def _list_shards(self, kind: str, identity: Identity) -> list[ArrayInfo]:
        """List an array's shards, complete or unfinished."""
        if SHARD in identity:
            return []
        shards = [
            info
            for info in self.entries()
            if info.name.startswith(f"{kind}-{digest(info.identity)}") and SHARD in info.identity
        ]
        return [
            info
            for info in shards
            if digest({name: value for name, value in info.identity.items() if name != SHARD}) == digest(identity)
        ]

    def _remove_shards(self, kind: str, identity: Identity, step: int) -> None:
        for info in self._list_shards(kind, identity):
            # Shards of another step were not used here and may be of use on another machine.
            if info.identity[SHARD]["step"] == step:
                # A shard of another user cannot be removed.
                with contextlib.suppress(CacheWriteError):
                    self.remove(info.name)

    # --- entries -------------------------------------------------------------

    def _open(self, folder: Path, identity: Identity, shape: tuple[int, ...], dtype: str) -> CachedArray | None:
        """Open an entry, verifying its checksum once per process; remove it if it is damaged."""
        if not folder.exists():
            return None
        found = read_array(folder / ENTRY_FILE, identity, shape, dtype)
        if found is None or not (_inode_key(folder) in self._verified or checksum(found[0]) == found[1].crc32):
            log.warning("%s is damaged: recomputing it", folder)
            with explain_write_errors(folder):
                shutil.rmtree(folder)
            return None
        self._verified.add(_inode_key(folder))
        rows, progress = found
        return CachedArray(folder, rows, progress.notes)

    def _evict(self) -> None:
        """Remove the least recently used arrays until the cache fits `max_bytes`."""
        entries = self.entries()
        total_bytes = sum(info.size_bytes for info in entries)
        for info in reversed(entries):
            if total_bytes <= self.max_bytes:
                return
            # An array of another user cannot be removed; what was computed is usable all the same.
            with contextlib.suppress(CacheWriteError):
                total_bytes -= info.size_bytes if self.remove(info.name) else 0


def _inode_key(folder: Path) -> tuple[str, int]:
    """Return a key that differs for another entry in the same place."""
    return str(folder), (folder / ENTRY_FILE).stat().st_ino
