"""Work of one thread ahead of another, and of several side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import repeat
from typing import TypeVar

from virnucpro_core.errors import need_room

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 6
"""Items under way, at most, the one that is waited for among them."""


def prefetch(items: Iterable[T]) -> Generator[T]:
    """Iterate over `items` on another thread, ahead of this one; its errors are raised here.

    Closing the generator early ends the thread.
    """
    source, end = iter(items), object()

    def read(_: None) -> T | object:
        return next(source, end)

    with closing(side_by_side(read, repeat(None), 1, AHEAD)) as found:
        for item in found:
            if item is end:
                return
            yield item  # type: ignore[misc]


def side_by_side(
    function: Callable[[T], R], items: Iterable[T], threads: int, under_way: int
) -> Generator[R]:
    """`map` on several threads: results in order, at most so many items under way.

    Closing the generator early waits for what has begun alone.
    """
    executor = ThreadPoolExecutor(threads, thread_name_prefix=function.__name__)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            need_room()
            pending.append(executor.submit(function, item))
            if len(pending) == under_way:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)
