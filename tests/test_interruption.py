import os
import signal
import threading
from collections.abc import Iterator

import pytest

from dogbreeds.core import process, signals
from dogbreeds.core.signals import Terminated, deferred, exit_code

SIGNALS = [(signal.SIGINT, KeyboardInterrupt, 130), (signal.SIGTERM, Terminated, 143)]


@pytest.fixture(autouse=True)
def installed_handlers() -> Iterator[None]:
    original = {number: signal.getsignal(number) for number, *_ in SIGNALS}
    signals.install_handlers()
    yield
    for number, handler in original.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "raised", "code"), SIGNALS)
def test_signal_is_raised_at_once(number: int, raised: type[BaseException], code: int) -> None:
    with pytest.raises(raised) as caught:
        os.kill(os.getpid(), number)
    assert type(caught.value) is raised
    assert exit_code(caught.value) == code


@pytest.mark.parametrize(("number", "raised", "code"), SIGNALS)
def test_signal_is_raised_once_after_all_deferred_blocks(number: int, raised: type[BaseException], code: int) -> None:
    done = []
    with pytest.raises(raised):
        with deferred():
            with deferred():
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)
                done.append("inner")
            done.append("outer")
        done.append("beyond")
    assert done == ["inner", "outer"]
    with deferred():
        # The signal was raised above and is not raised again.
        done.append("later")
    assert done[-1] == "later"


def test_deferred_block_raises_its_own_error() -> None:
    with pytest.raises(ValueError, match="bug"), deferred():
        raise ValueError("bug")


def test_handlers_are_not_installed_outside_the_main_thread() -> None:
    worker = threading.Thread(target=signals.install_handlers)
    worker.start()
    worker.join()
    with pytest.raises(Terminated):
        os.kill(os.getpid(), signal.SIGTERM)


def test_scheduler_signal_is_raised_after_a_deferred_block_and_then_passed_to_the_scheduler() -> None:
    received = []
    original = signal.signal(signal.SIGUSR2, lambda number, frame: received.append(number))
    try:
        signals.install_handlers()
        with pytest.raises(signals.OutOfTime) as caught, deferred():
            os.kill(os.getpid(), signal.SIGUSR2)
            assert received == []
        # It ends a run in the same way as any other signal.
        assert isinstance(caught.value, KeyboardInterrupt)
        caught.value.run_scheduler_handler()
        assert received == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, original)


# --- handlers of a Python caller ---------------------------------------------


@pytest.fixture
def received() -> list[int]:
    """Signals that reach a caller's own handlers."""
    numbers: list[int] = []
    for number, *_ in SIGNALS:
        signal.signal(number, lambda number, _: numbers.append(number))
    return numbers


@pytest.mark.parametrize(("number", "raised", "code"), SIGNALS)
def test_handled_raises_a_signal_and_puts_the_callers_handlers_back(
    received: list[int], number: int, raised: type[BaseException], code: int
) -> None:
    with pytest.raises(raised), signals.handled():
        os.kill(os.getpid(), number)
    assert received == []
    for other, *_ in SIGNALS:
        os.kill(os.getpid(), other)
    assert received == [other for other, *_ in SIGNALS]


def test_signal_that_a_failed_deferred_block_did_not_raise_reaches_the_callers_handler(received: list[int]) -> None:
    with pytest.raises(ValueError, match="bug"), signals.handled(), deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("bug")
    assert received == [signal.SIGTERM]
    with signals.handled(), deferred():
        # It is not raised again in the next run.
        pass


def test_handled_leaves_an_ignored_signal_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals.handled():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_handled_leaves_other_signals_to_the_caller(received: list[int]) -> None:
    original = signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    try:
        with signals.handled():
            os.kill(os.getpid(), signal.SIGUSR1)
        assert received == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, original)


def test_handled_has_no_effect_outside_the_main_thread(received: list[int]) -> None:
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with signals.handled():
            inside.set()
            leave.wait(30)

    worker = threading.Thread(target=work)
    worker.start()
    assert inside.wait(30)
    os.kill(os.getpid(), signal.SIGTERM)
    leave.set()
    worker.join()
    assert received == [signal.SIGTERM]


def test_handled_leaves_the_handlers_of_a_command_installed() -> None:
    with signals.handled():
        pass
    with pytest.raises(Terminated):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("number", "raised", "code"), SIGNALS)
def test_job_of_a_command_ignores_signals_once_it_was_interrupted(
    number: int, raised: type[BaseException], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_is_command", False)
    with pytest.raises(raised), signals.job_scope():
        assert process.is_command()
        os.kill(os.getpid(), number)
    # The command that started it takes this as the sign that nothing is left to write.
    assert [signal.getsignal(other) for other, *_ in SIGNALS] == [signal.SIG_IGN, signal.SIG_IGN]
