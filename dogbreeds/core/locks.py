"""File locks between processes, also on storage that several hosts share.

A lock belongs to an open file and ends when that file is closed, at the latest when the process ends. On NFS, Linux
maps `flock` to byte-range locks on the server, which grants shared locks only on files open for reading and exclusive
ones only on files open for writing. So lock files are always opened for both.
"""

import contextlib
import fcntl
import logging
import os
import time
from pathlib import Path
from typing import IO

from dogbreeds.core import signals

log = logging.getLogger(__name__)

# Time between two tries for a lock that is held: doubles from the first to the second.
_FIRST_POLL_SECONDS = 0.01
_LAST_POLL_SECONDS = 0.5
# Shorter waits are not logged.
_LOG_AFTER_SECONDS = 1.0


class LockHeldError(Exception):
    """Another process, or another open file of this process, holds the lock."""


def exclusive(path: Path, *, waiting_for: str | None) -> IO[bytes]:
    """Take an exclusive lock: nobody else holds the lock of this file, exclusive or shared.

    Example: `with locks.exclusive(path, waiting_for="another command"): ...`

    Args:
        path: the lock file, created if missing. Its folder must exist. The holder of an exclusive lock may remove it.
        waiting_for: holder of the lock, as the log names it when this process has waited a second. None does not wait.

    Returns:
        The open lock file, at its end. Closing it, also as a context manager, releases the lock.

    Raises:
        LockHeldError: if the lock is held and `waiting_for` is None.
        OSError: if the file cannot be opened or locked.
        KeyboardInterrupt: if a signal arrives during the wait, even within `signals.deferred`.
    """
    return _lock(path, fcntl.LOCK_EX, waiting_for)


def shared(path: Path, *, waiting_for: str | None) -> IO[bytes]:
    """Take a shared lock: nobody else holds an exclusive one. Arguments, result and errors are those of `exclusive`."""
    return _lock(path, fcntl.LOCK_SH, waiting_for)


def _lock(path: Path, kind: int, waiting_for: str | None) -> IO[bytes]:
    """Open and lock a lock file; try again if its last holder has removed it in the meantime."""
    while True:
        file = path.open("a+b")
        try:
            _wait(file, kind, waiting_for)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _wait(file: IO[bytes], kind: int, waiting_for: str | None) -> None:
    """Lock an open file once nobody else holds a lock that excludes it.

    Polls, since a blocking `flock` cannot be interrupted within `signals.deferred`.
    """
    pause = _FIRST_POLL_SECONDS
    started = time.monotonic()
    logged = False
    while True:
        try:
            return fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting_for is None:
                raise LockHeldError(file.name) from None
        if not logged and time.monotonic() - started >= _LOG_AFTER_SECONDS:
            # A warning, so that a Python caller without any logging sees it too.
            log.warning("waiting for %s", waiting_for)
            logged = True
        signals.raise_pending()
        time.sleep(pause)
        pause = min(2 * pause, _LAST_POLL_SECONDS)
