"""Work of one thread ahead of another, and of several side by side."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from virnucpro_core.errors import need_room

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4


def prefetch(items: Iterable[T]) -> Generator[T]:
    """Iterate over `items` on another thread, at most AHEAD of this; its errors are raised here.

    Closing the generator early ends the thread.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(AHEAD)
    closed = threading.Event()

    def work() -> None:
        try:
            for item in items:
                ready.put((item, None))
                if closed.is_set():
                    return
        except BaseException as error:
            ready.put((None, error))
        else:
            ready.put((None, StopIteration()))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    need_room()
    thread.start()
    try:
        while True:
            alive = thread.is_alive()  # asked first: its last word may come right before its end
            try:
                item, error = ready.get(timeout=1)
            except queue.Empty:
                if alive:
                    continue
                raise MemoryError("not even for a thread's last word") from None
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        while thread.is_alive():  # it may be waiting for room
            with suppress(queue.Empty):
                ready.get(timeout=0.1)


def side_by_side(function: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[R]:
    """`map` on several threads: results in order, at most two items a thread under way.

    Closing the generator early waits for what has begun alone.
    """
    executor = ThreadPoolExecutor(threads, thread_name_prefix="compute")
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            need_room()
            pending.append(executor.submit(function, item))
            if len(pending) >= 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)
