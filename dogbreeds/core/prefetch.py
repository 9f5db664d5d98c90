"""Prefetching: threads compute results before they are needed, such as decoded images while the network is busy."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Generator[Result, None, None]:
    """Apply a function to each item in one thread per core, and yield the results in the order of the items.

    Memory is bounded by `ahead`. After the generator is closed, or a call has failed, no further call starts.

    Args:
        function: must be thread-safe.
        items: consumed lazily.
        ahead: maximum number of calls started before their results are taken, 1 or more.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="ahead") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
