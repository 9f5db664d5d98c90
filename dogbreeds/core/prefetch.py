"""Prefetching: threads compute results before they are needed, such as decoded images while the network is busy."""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int, pool: Executor | None = None
) -> Generator[Result, None, None]:
    """Apply a function to each item in one thread per core, and yield the results in the order of the items.

    Memory is bounded by `ahead`. After the generator is closed, or a call has failed, no further call starts.

    Args:
        function: must be thread-safe.
        items: consumed lazily.
        ahead: maximum number of calls started before their results are taken, 1 or more.
        pool: makes the calls, and stays open; None for threads of its own.
    """
    pending: deque[Future[Result]] = deque()
    with contextlib.ExitStack() as stack:
        executor = pool or stack.enter_context(ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="ahead"))
        try:
            for item in items:
                pending.append(executor.submit(function, item))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
