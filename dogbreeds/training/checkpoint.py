"""Checkpoints of a run that goes on: written beside their place and renamed, two of them kept, removed when the run has ended.

They lie in a folder that is named after what decides the run's result, so that the same command finds them again. A lock keeps two
processes from working on the same run.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.core.process import owner, spelled

log = logging.getLogger(__name__)

# The newest, and the one before it should that be damaged
_KEPT = 2
_ABOUT = "about"


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: theirs alone; made when there is something to keep.
    """

    folder: Path

    @contextlib.contextmanager
    def locked(self) -> Iterator[list[str]]:
        """Waits while another process works on the same run. Gives the processes that held the lock and are gone, killed or with their machine, as
        `spelled` has them; who gets them clears the list once something was made of it, for else the next one gets them again.
        """
        with self._written("locked"):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            file = self._acquired()
            file.seek(0)
            gone = file.read().decode(errors="replace").splitlines()
            before = file.tell()
            file.write(f"{spelled(owner())}\n".encode())
            file.flush()
        try:
            yield gone
        finally:
            if gone:
                file.truncate(before)
            else:
                Path(file.name).unlink(missing_ok=True)
            file.close()

    def _acquired(self) -> IO[bytes]:
        """The lock's file, locked; one that its last owner has removed in the meantime does not count."""
        path = Path(f"{self.folder}.lock")
        while True:
            file = path.open("a+b")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("another process is at work on this very run: waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    return file
            file.close()

    def save(self, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps a state.

        Args:
            about: plain values, as JSON takes them; floats come back as they are.
            arrays: by name.

        Raises:
            UserError: where it cannot be written; the checkpoints that are there stay as they are.
        """
        files = self._files()
        number = int(files[-1].stem) + 1 if files else 1
        aside = self.folder / "aside"
        said = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        with self._written("written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                with aside.open("wb") as file:
                    np.savez(file, **{_ABOUT: said, **arrays})  # type: ignore[arg-type]
                    file.flush()
                    os.fsync(file.fileno())
                aside.replace(self.folder / f"{number:08d}.npz")
            finally:
                aside.unlink(missing_ok=True)
        for old in files[: len(files) + 1 - _KEPT]:
            old.unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """The newest state that is whole; None where there is none."""
        for file in reversed(self._files()):
            try:
                # A zip file: each array is compared with its checksum
                with np.load(file) as stored:
                    arrays = {name: stored[name] for name in stored.files}
                return json.loads(arrays.pop(_ABOUT).tobytes()), arrays
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                log.warning("the checkpoint %s is damaged and is passed over", file)
        return None

    def set_aside(self, name: str) -> Path | None:
        """Takes the newest out of the folder, where nothing goes on from it, and forgets the others; None where there is none."""
        newest = self.newest
        if newest is None:
            return None
        place = self.folder.with_name(name)
        newest.replace(place)
        self.remove()
        return place

    @property
    def newest(self) -> Path | None:
        """The file that was written last."""
        files = self._files()
        return files[-1] if files else None

    def remove(self) -> None:
        """Forgets them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.npz"))

    @contextlib.contextmanager
    def _written(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"The checkpoint in {self.folder} cannot be {what} ({error.strerror}). It needs a folder that can be"
                " written, on a disk with room. Make room and run the same command again, which goes on from the last"
                " one, or type checkpoint_dir=<folder>."
            ) from error
