import os
import signal
import threading
from collections.abc import Iterator

import pytest

from dogbreeds.core import signals
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
