"""Signal handling: Ctrl-C, SIGTERM, and a scheduler's warning that a job's time is nearly over.

Each is raised as an exception, at once or after the block that must not be interrupted.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import psutil

from dogbreeds.core import process

# Longest wait for parallel jobs to write their checkpoints.
_GRACE_SECONDS = 8.0
_POLL_SECONDS = 0.05


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM."""


class OutOfTime(Terminated):
    """A scheduler signalled that the job's time is nearly over.

    Attributes:
        run_scheduler_handler: calls the scheduler's own signal handler, which may queue the job again and ends the
            process.
    """

    def __init__(self, run_scheduler_handler: Callable[[], None]):
        super().__init__()
        self.run_scheduler_handler = run_scheduler_handler


_EXCEPTIONS: dict[int, type[KeyboardInterrupt]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
# Handlers of SIGUSR1 and SIGUSR2 that a scheduler installed before ours.
_scheduler_handlers: dict[int, Callable[..., None]] = {}
# Cancels jobs that run on other machines.
_remote_cancel: Callable[[float], None] | None = None
# Signal that arrived and is not raised yet.
_pending: int | None = None
# Signal that was raised last.
_raised: int | None = None
# Number of `deferred` blocks that are open.
_deferral_depth = 0


def install_handlers() -> None:
    """Raise both signals, and a scheduler's, as exceptions from now on, for a process that is a command.

    Has no effect outside the main thread.
    """
    if _in_main_thread():
        for number in _EXCEPTIONS:
            signal.signal(number, _on_signal)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            existing = signal.getsignal(number)
            # The scheduler's handler would end the process at once, even in the middle of a write.
            if callable(existing) and existing is not _on_signal:
                _scheduler_handlers[number] = existing
                signal.signal(number, _on_signal)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Raise both signals as exceptions within the block, whose end puts the earlier handlers back.

    Has no effect outside the main thread, nor on a signal that is ignored or whose handler was not installed by Python.
    If a deferred block fails, a signal that arrived in it is not raised: it then goes to the earlier handler.
    """
    global _pending, _deferral_depth
    replaced = {}
    if _in_main_thread():
        earlier = {number: signal.getsignal(number) for number in _EXCEPTIONS}
        replaced = {
            number: handler for number, handler in earlier.items() if handler not in (None, signal.SIG_IGN, _on_signal)
        }
    try:
        for number in replaced:
            signal.signal(number, _on_signal)
        yield
    finally:
        _deferral_depth += 1
        for number, handler in replaced.items():
            signal.signal(number, handler)
        _deferral_depth -= 1
        if _pending in replaced:
            number, _pending = _pending, None
            signal.raise_signal(number)


@contextlib.contextmanager
def job_scope() -> Iterator[None]:
    """Handle signals during one job of a command, which a launcher may run in a process of its own.

    A scheduler's own handler runs once the job has finished its writes.
    """
    process.mark_as_command()
    install_handlers()
    try:
        yield
    except OutOfTime as stop:
        stop.run_scheduler_handler()
        raise
    except KeyboardInterrupt:
        # Tells the command that started this process that nothing is left to write: see `_is_job`.
        ignore()
        raise


def set_remote_cancel(cancel: Callable[[float], None]) -> None:
    """Set the function by which `cancel_remote_jobs` stops jobs on other machines.

    Signals are no longer passed on to child processes from now on, because those are the launcher's and no jobs.

    Args:
        cancel: takes the number of seconds within which it must return.
    """
    global _remote_cancel
    _remote_cancel = cancel


def cancel_remote_jobs() -> None:
    """Stop jobs on other machines. Call it after a signal was raised, because its handler cannot do this."""
    if _remote_cancel is not None:
        # A cluster that is unreachable runs no jobs either. The signal itself is what the user sees.
        with contextlib.suppress(Exception):
            _remote_cancel(_GRACE_SECONDS)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Protect a block from interruption: a signal that arrives within it is raised at its end.

    Has no effect outside the main thread, where no signal is raised.
    """
    global _deferral_depth
    if not _in_main_thread():
        yield
        return
    _deferral_depth += 1
    try:
        yield
    finally:
        _deferral_depth -= 1
    _raise_if_pending()


def raise_pending() -> None:
    """Raise a signal that has arrived, even within a deferred block.

    For code that waits for another process or a server, so that the user can interrupt the wait.
    """
    global _deferral_depth
    if _pending is not None:
        depth, _deferral_depth = _deferral_depth, 0
        try:
            _raise_if_pending()
        finally:
            _deferral_depth = depth


def ignore() -> None:
    """Ignore both signals from now on, because this command's process is ending already."""
    if _in_main_thread():
        for number in _EXCEPTIONS:
            signal.signal(number, signal.SIG_IGN)


def exit_code(interruption: KeyboardInterrupt) -> int:
    """Return the shell's exit code for a process ended by this signal: 130 for Ctrl-C, 143 for SIGTERM."""
    # Ray turns SIGTERM into a plain KeyboardInterrupt, so the last raised signal counts too.
    by_sigterm = isinstance(interruption, Terminated) or _raised == signal.SIGTERM
    return 128 + (signal.SIGTERM if by_sigterm else signal.SIGINT)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _on_signal(number: int, _: FrameType | None) -> None:
    global _pending
    if _pending is None:
        _pending = number
        # The child processes of a Python caller are none of our jobs.
        if process.is_command() and number in _EXCEPTIONS and _remote_cancel is None:
            _terminate_jobs()
    if not _deferral_depth:
        _raise_if_pending()


def _raise_if_pending() -> None:
    global _pending, _raised
    if _pending is not None and not _deferral_depth:
        number, _pending = _pending, None
        _raised = number
        if number in _scheduler_handlers:
            raise OutOfTime(lambda: _scheduler_handlers[number](number, None))
        raise _EXCEPTIONS[number]


def _terminate_jobs() -> None:
    """Send SIGTERM to jobs in child processes and wait for them, because a launcher would kill them without warning."""
    jobs = [child for child in psutil.Process().children() if _is_job(child)]
    for job in jobs:
        with contextlib.suppress(psutil.NoSuchProcess):
            # Also after Ctrl-C, because submitit then gives its jobs no time to write.
            job.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    while any(map(_is_job, jobs)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _is_job(child: psutil.Process) -> bool:
    """Return whether a child process handles SIGTERM. One that ignores it, or has no handler (git), is no job."""
    try:
        with open(f"/proc/{child.pid}/status") as file:
            caught = next((line.split()[1] for line in file if line.startswith("SigCgt:")), "0")
    except OSError:
        return False
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1) and child.pid != os.getpid()
