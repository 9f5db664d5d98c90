"""Ctrl-C and SIGTERM: they stop what is going on at once, or after the block that must not be cut in two. So does a scheduler's signal that a
job's time is nearly over."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import psutil

# At most, for parallel jobs to write down how far they have come
_GRACE_SECONDS = 8.0
_LOOK_SECONDS = 0.05


class Terminated(KeyboardInterrupt):
    """SIGTERM: somebody wants the process to end."""


class OutOfTime(Terminated):
    """A scheduler's signal: the job's time is nearly over."""

    def __init__(self, hand_over: Callable[[], None]):
        super().__init__()
        # Lets the scheduler do what it does then, such as to queue the job again; it ends the process
        self.hand_over = hand_over


_RAISED: dict[int, type[KeyboardInterrupt]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
# Handlers that were there before ours
_schedulers: dict[int, Callable[..., None]] = {}
_elsewhere: Callable[[float], None] | None = None
_raised: int | None = None
_held = 0
_arrived: int | None = None


def handle() -> None:
    """From now on both signals are raised as exceptions. Only a main thread can have it so; another is left as it is."""
    if threading.current_thread() is threading.main_thread():
        for number in _RAISED:
            signal.signal(number, _arrive)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            before = signal.getsignal(number)
            # It would end the process at once, in the midst of writing too
            if callable(before) and before is not _arrive:
                _schedulers[number] = before
                signal.signal(number, _arrive)


@contextlib.contextmanager
def job() -> Iterator[None]:
    """The whole of a job, which a launcher may have brought to a process of its own: signals are raised in it, and a scheduler whose time is over
    does what it does then once nothing is half-written any more."""
    handle()
    try:
        yield
    except OutOfTime as end:
        end.hand_over()
        raise
    except KeyboardInterrupt:
        # By which the command that started this process sees that nothing is left to be written
        ignore()
        raise


def elsewhere(end: Callable[[float], None]) -> None:
    """From now on `end_elsewhere` ends jobs by a function, which gets the seconds that it may take. Signals are not passed on to processes that this
    one has started any more: they are no jobs, but what runs them."""
    global _elsewhere
    _elsewhere = end


def end_elsewhere() -> None:
    """Ends jobs that are no processes of this one's, once a signal has been raised: from within its handler that cannot be done."""
    if _elsewhere is not None:
        # A cluster that is gone runs no jobs either; what ends the command is said
        with contextlib.suppress(Exception):
            _elsewhere(_GRACE_SECONDS)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """A block that is not cut in two: a signal that arrives within is raised at its end."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1
    _raise_what_arrived()


def raise_arrived() -> None:
    """Raises a signal that has arrived, within a held block too: one that waits for somebody else must not hold the user up."""
    global _held
    if _arrived is not None:
        deferred, _held = _held, 0
        try:
            _raise_what_arrived()
        finally:
            _held = deferred


def ignore() -> None:
    """From now on both signals do nothing: the process is ending already."""
    if threading.current_thread() is threading.main_thread():
        for number in _RAISED:
            signal.signal(number, signal.SIG_IGN)


def exit_code(interruption: KeyboardInterrupt) -> int:
    """The shell's code for a process that the signal ended."""
    # Which Ray makes a KeyboardInterrupt
    by_sigterm = isinstance(interruption, Terminated) or _raised == signal.SIGTERM
    return 128 + (signal.SIGTERM if by_sigterm else signal.SIGINT)


def _arrive(number: int, _: FrameType | None) -> None:
    global _arrived
    if _arrived is None:
        _arrived = number
        if number in _RAISED and _elsewhere is None:
            _tell_jobs()
    if not _held:
        _raise_what_arrived()


def _raise_what_arrived() -> None:
    global _arrived, _raised
    if _arrived is not None and not _held:
        number, _arrived = _arrived, None
        _raised = number
        if number in _schedulers:
            raise OutOfTime(lambda: _schedulers[number](number, None))
        raise _RAISED[number]


def _tell_jobs() -> None:
    """Ends jobs that run in processes of their own: a launcher would kill them without a word."""
    jobs = [child for child in psutil.Process().children() if _is_job(child)]
    for job in jobs:
        with contextlib.suppress(psutil.NoSuchProcess):
            # After Ctrl-C too: submitit gives its jobs no time to write then
            job.terminate()
    end = time.monotonic() + _GRACE_SECONDS
    while any(map(_is_job, jobs)) and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)


def _is_job(process: psutil.Process) -> bool:
    """Whether a child process has our handler of SIGTERM or another: what has none, such as git, or ignores it, is left alone."""
    try:
        with open(f"/proc/{process.pid}/status") as file:
            caught = next((line.split()[1] for line in file if line.startswith("SigCgt:")), "0")
    except OSError:
        return False
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1) and process.pid != os.getpid()
