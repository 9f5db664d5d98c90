"""Checkpoints of an unfinished run.

A checkpoint is written to a temporary file and renamed. The two newest are retained, and all are removed once the run
has finished. Their folder is named after the run's identity, so the same command finds them again. A lock keeps two
processes from working on the same run.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dogbreeds.core import locks
from dogbreeds.core.errors import UserError
from dogbreeds.core.files import atomic_write, read_npz
from dogbreeds.core.locks import LockHeldError
from dogbreeds.core.process import format_process, process_tags

log = logging.getLogger(__name__)

# The newest checkpoint, and the one before it in case the newest is damaged.
_MAX_CHECKPOINTS = 2
# Name of the metadata among a checkpoint's arrays.
_METADATA = "about"


@dataclass(frozen=True)
class RunLock:
    """The lock of a run, while it is held.

    Attributes:
        dead_processes: processes that were killed, or whose machine was lost, while they held the lock, as
            `format_process` spells them. Clear the list once they have been dealt with; otherwise the next owner of the
            lock gets it too.
        waited: whether another process held the lock first.
    """

    dead_processes: list[str]
    waited: bool


class StoredCheckpoints(NamedTuple):
    """The checkpoints of a run, or the last one of a run that diverged, as they lie on disk.

    Attributes:
        path: folder of a run's checkpoints, named after its identity; a file if it was archived.
        size_bytes: size of all its files.
        last_written: in seconds since the epoch.
    """

    path: Path
    size_bytes: int
    last_written: float


def stored_checkpoints(folder: Path) -> list[StoredCheckpoints]:
    """List the checkpoints in the folder of all runs' checkpoints, archived ones too, the newest first."""
    if not folder.is_dir():
        return []
    paths = [path for path in folder.iterdir() if path.is_dir() or path.suffix == ".npz"]
    found = []
    for path in paths:
        # The run may finish meanwhile.
        with contextlib.suppress(FileNotFoundError):
            stats = [file.stat() for file in (path.rglob("*") if path.is_dir() else [path])] or [path.stat()]
            size_bytes = sum(stat.st_size for stat in stats)
            found.append(StoredCheckpoints(path, size_bytes, max(stat.st_mtime for stat in stats)))
    return sorted(found, key=lambda stored: -stored.last_written)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        folder: holds nothing else but such folders of parts of the run; created by the first save.
    """

    folder: Path

    @contextlib.contextmanager
    def locked(self) -> Iterator[RunLock]:
        """Hold the run's lock, after waiting for a process that holds it.

        Raises:
            UserError: if the lock file cannot be created.
        """
        with contextlib.ExitStack() as stack:
            with self._write_errors("locked"):
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                waited = False
                try:
                    lock_file = locks.exclusive(self._lock_file, waiting_for=None)
                except LockHeldError:
                    waited = True
                    lock_file = locks.exclusive(self._lock_file, waiting_for=self._holder())
                file = stack.enter_context(lock_file)
                file.seek(0)
                gone = file.read().decode(errors="replace").splitlines()
                end_of_gone = file.tell()
                file.write(f"{format_process(process_tags())}\n".encode())
                file.flush()
            try:
                yield RunLock(gone, waited)
            finally:
                if gone:
                    file.truncate(end_of_gone)
                else:
                    self._lock_file.unlink(missing_ok=True)

    def save(self, metadata: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Write a checkpoint, then remove all but the two newest.

        Args:
            metadata: JSON-compatible values; floats are restored exactly.
            arrays: by name.

        Raises:
            UserError: if it cannot be written; the existing checkpoints stay as they are.
        """
        files = self._files()
        number = int(files[-1].stem) + 1 if files else 1
        target = self.folder / f"{number:08d}.npz"
        encoded = np.frombuffer(json.dumps(metadata).encode(), dtype=np.uint8)
        with self._write_errors("written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with (
                atomic_write(target, sole_writer=True, durable=True) as temporary,
                temporary.open("wb") as file,
            ):
                np.savez(file, **{_METADATA: encoded, **arrays})  # type: ignore[arg-type]
        for old in files[: len(files) + 1 - _MAX_CHECKPOINTS]:
            old.unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """Return metadata and arrays of the newest undamaged checkpoint; None if there is none."""
        for file in reversed(self._files()):
            try:
                arrays = read_npz(file)
                return json.loads(arrays.pop(_METADATA).tobytes()), arrays
            except (ValueError, KeyError):
                log.warning("checkpoint %s is damaged and is skipped", file)
        return None

    def archive_newest(self, name: str) -> Path | None:
        """Move the newest checkpoint next to the folder, where no run resumes from it, and remove the others.

        Args:
            name: file name of the archived checkpoint.

        Returns:
            Its path; None if there is no checkpoint.
        """
        newest = self.newest
        if newest is None:
            return None
        archived = self.folder.with_name(name)
        newest.replace(archived)
        self.remove()
        return archived

    def remove_unless_in_use(self) -> bool:
        """Remove all checkpoints of the run unless a process works on it; return whether they were removed."""
        # An existing lock file may name a process that was killed, for whoever runs this next: it stays.
        is_new = not self._lock_file.exists()
        try:
            with self._write_errors("locked"), locks.exclusive(self._lock_file, waiting_for=None):
                self.remove()
                if is_new:
                    self._lock_file.unlink(missing_ok=True)
        except LockHeldError:
            return False
        return not self.folder.exists()

    @property
    def newest(self) -> Path | None:
        """The checkpoint file that was written last; None if there is none."""
        files = self._files()
        return files[-1] if files else None

    def remove(self) -> None:
        """Remove all checkpoints of the run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _holder(self) -> str:
        """Describe the process that holds the lock, for whoever waits for it."""
        lines: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            lines = self._lock_file.read_text(errors="replace").splitlines()
        # In `format_process`'s order: host, boot, process, start.
        words = lines[-1].split() if lines else []
        which = f"process {words[2]} on {words[0]}" if len(words) == 4 else "another process"
        return f"{which}, which is working on the same run"

    @property
    def _lock_file(self) -> Path:
        return Path(f"{self.folder}.lock")

    def _files(self) -> list[Path]:
        """List the checkpoint files, the oldest first."""
        return sorted(self.folder.glob("*.npz"))

    @contextlib.contextmanager
    def _write_errors(self, what: str) -> Iterator[None]:
        """Turn an `OSError` into a `UserError` that names the folder and what failed."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"The checkpoint in {self.folder} cannot be {what} ({error.strerror}). Checkpoints need a writable"
                " folder, on a disk with free space. Free some space and run the same command again, which resumes from"
                " the last checkpoint, or set checkpoint_dir=<folder>."
            ) from error
