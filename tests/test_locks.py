"""`locks`: locks between processes. A second process holds the lock."""

import fcntl
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import psutil
import pytest

from dogbreeds.core import locks, signals
from dogbreeds.core.locks import LockHeldError

FORK = multiprocessing.get_context("fork")
KINDS = {"exclusive": locks.exclusive, "shared": locks.shared}


def _hold(path: Path, kind: str, ready: Event, leave: Event, remove: bool) -> None:
    # A signal of the test is not passed on to a process that ignores it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with KINDS[kind](path, waiting_for=None):
        ready.set()
        leave.wait(30)
        if remove:
            path.unlink()


Holder = tuple[ForkProcess, Event]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.lock"


@pytest.fixture
def hold(path: Path) -> Iterator[Callable[..., Holder]]:
    """A function that starts a process that holds the lock, and returns it with the event that ends it."""
    holders: list[Holder] = []

    def start(kind: str = "exclusive", remove: bool = False) -> Holder:
        ready, leave = FORK.Event(), FORK.Event()
        process = FORK.Process(target=_hold, args=(path, kind, ready, leave, remove))
        process.start()
        holders.append((process, leave))
        assert ready.wait(30)
        return process, leave

    yield start
    for process, leave in holders:
        # Setting an event waits for those that wait for it, and never ends if one of them was killed.
        if process.is_alive():
            leave.set()
        process.join(30)
        assert process.exitcode in (0, -signal.SIGKILL)


def is_held(path: Path, kind: str = "exclusive") -> bool:
    """Tell whether a lock is refused, without waiting."""
    try:
        KINDS[kind](path, waiting_for=None).close()
    except LockHeldError:
        return True
    return False


@pytest.mark.parametrize(
    ("held", "asked", "refused"),
    [
        ("exclusive", "exclusive", True),
        ("exclusive", "shared", True),
        ("shared", "exclusive", True),
        ("shared", "shared", False),
    ],
)
def test_lock_of_another_process_excludes_all_but_a_shared_one_beside_a_shared_one(
    path: Path, hold: Callable[..., Holder], held: str, asked: str, refused: bool
) -> None:
    process, leave = hold(held)
    assert is_held(path, asked) is refused
    leave.set()
    process.join(30)
    assert not is_held(path, asked)


def test_lock_excludes_another_open_file_of_the_same_process(path: Path) -> None:
    with locks.exclusive(path, waiting_for=None):
        assert is_held(path)
    assert not is_held(path)


def test_lock_ends_when_its_process_is_killed(path: Path, hold: Callable[..., Holder]) -> None:
    process, _ = hold()
    process.kill()
    process.join(30)
    assert not is_held(path)


@pytest.mark.parametrize("kind", KINDS)
def test_lock_opens_its_file_for_reading_and_writing_as_nfs_requires(path: Path, kind: str) -> None:
    with KINDS[kind](path, waiting_for=None) as file:
        assert (file.readable(), file.writable()) == (True, True)


def test_lock_file_keeps_its_content(path: Path) -> None:
    path.write_text("first\n")
    with locks.exclusive(path, waiting_for=None) as file:
        file.write(b"second\n")
    assert path.read_text() == "first\nsecond\n"


def test_lock_in_a_missing_folder_raises_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        locks.exclusive(tmp_path / "missing/file.lock", waiting_for=None)


@pytest.mark.parametrize(("log_after", "logged"), [(0.05, ["waiting for another test"]), (30.0, [])])
def test_wait_ends_with_the_other_process_and_is_logged_once_if_it_is_long(
    path: Path,
    hold: Callable[..., Holder],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    log_after: float,
    logged: list[str],
) -> None:
    monkeypatch.setattr(locks, "_LOG_AFTER_SECONDS", log_after)
    process, leave = hold()
    threading.Timer(0.6, leave.set).start()
    with caplog.at_level(logging.INFO), locks.exclusive(path, waiting_for="another test"):
        process.join(30)
        assert process.exitcode == 0
        assert is_held(path)
    assert caplog.messages == logged


def test_wait_takes_the_new_file_if_the_holder_removes_its_own(path: Path, hold: Callable[..., Holder]) -> None:
    process, leave = hold(remove=True)
    threading.Timer(0.3, leave.set).start()
    with locks.exclusive(path, waiting_for="another test") as file:
        process.join(30)
        assert os.path.samestat(path.stat(), os.fstat(file.fileno()))
        # A third process opens the file that is there now.
        assert is_held(path)


def test_signal_ends_a_wait_inside_a_deferred_block_and_leaves_no_file_open(
    path: Path, hold: Callable[..., Holder]
) -> None:
    original = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hold()
    signals.install_handlers()
    try:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        started = time.monotonic()
        with pytest.raises(signals.Terminated), signals.deferred():
            locks.exclusive(path, waiting_for="another test")
        assert time.monotonic() - started < 10
    finally:
        for number, handler in original.items():
            signal.signal(number, handler)
    assert str(path) not in [file.path for file in psutil.Process().open_files()]


def test_error_of_the_file_system_is_raised_and_leaves_no_file_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    with pytest.raises(OSError, match="No locks available"):
        locks.shared(path, waiting_for="another test")
    assert str(path) not in [file.path for file in psutil.Process().open_files()]
