import os
import signal
import threading
from collections.abc import Iterator

import pytest

from dogbreeds.core import signals
from dogbreeds.core.signals import Terminated, deferred, exit_code

SIGNALS = [(signal.SIGINT, KeyboardInterrupt, 130), (signal.SIGTERM, Terminated, 143)]


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number, *_ in SIGNALS}
    signals.handle()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "raised", "code"), SIGNALS)
def test_a_signal_is_raised_at_once(number: int, raised: type[BaseException], code: int) -> None:
    with pytest.raises(raised) as caught:
        os.kill(os.getpid(), number)
    assert type(caught.value) is raised
    assert exit_code(caught.value) == code


@pytest.mark.parametrize(("number", "raised", "code"), SIGNALS)
def test_a_block_that_is_held_comes_to_its_end_first(number: int, raised: type[BaseException], code: int) -> None:
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
        # It was raised once, and is over
        done.append("later")
    assert done[-1] == "later"


def test_a_block_that_fails_says_so_and_not_that_it_was_interrupted() -> None:
    with pytest.raises(ValueError, match="bug"), deferred():
        raise ValueError("bug")


def test_only_a_main_thread_handles_signals() -> None:
    worker = threading.Thread(target=signals.handle)
    worker.start()
    worker.join()
    with pytest.raises(Terminated):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_schedulers_signal_ends_the_block_first_and_is_then_the_schedulers_again() -> None:
    said = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: said.append(number))
    try:
        signals.handle()
        with pytest.raises(signals.OutOfTime) as caught, deferred():
            os.kill(os.getpid(), signal.SIGUSR2)
            assert said == []
        # What is ended by it is ended as by any signal
        assert isinstance(caught.value, KeyboardInterrupt)
        caught.value.hand_over()
        assert said == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)
