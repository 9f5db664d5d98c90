"""Work that runs ahead of its result's use, in order and in bounded memory: photos are decoded while the network is busy with those before."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def mapped(work: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Generator[Result, None, None]:
    """The result of each item, in their order, worked out by as many threads as there are cores.

    What is closed early, or fails, begins nothing more.

    Args:
        work: may run in several threads at once.
        items: gone over lazily.
        ahead: how many items are at most begun, or done, before the result of the first is taken; 1 or more.
    """
    running: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="ahead") as pool:
        try:
            for item in items:
                running.append(pool.submit(work, item))
                if len(running) >= ahead:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
