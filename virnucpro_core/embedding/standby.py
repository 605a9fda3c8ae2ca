"""Processes that import what a worker needs while it is being found out what they shall do."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any


class Standby:
    """A spawned process that waits to be told what to do.

    report: what it sends. Its own end of that is the first argument of what it does.
    """

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        orders, self._orders = spawn.Pipe(duplex=False)
        self.report, report = spawn.Pipe(duplex=False)
        self.process: SpawnProcess = spawn.Process(target=_stand_by, args=(orders, report))
        with _uninterrupted():
            self.process.start()
        orders.close()
        report.close()

    def work(self, function: Callable[..., None], *arguments: Any) -> None:
        """Let it do this, and end. Arguments are small: no pipe holds more than 64 kB unread."""
        with suppress(OSError), self._orders:  # where it has died, its exit code says so
            self._orders.send((function, arguments))


def _stand_by(orders: Connection, report: Connection) -> None:
    import_module("virnucpro_core.embedding.engine")
    try:
        function, arguments = orders.recv()
    except EOFError:  # there was nothing to do, or who started this is gone
        os._exit(0)
    function(report, *arguments)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until this is over, and in processes started in here until they listen to it:
    it would end their imports in a traceback.
    """
    resource_tracker.ensure_running()  # when that is started, it lets SIGINT through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_waiting: list[Standby] = []


@contextmanager
def standing_by(devices: str, gpus: int | None) -> Iterator[None]:
    """Have a process a device ready, if there are several, beside what is imported in here."""
    count = _expected(devices, gpus)
    _waiting.extend(Standby() for _ in range(count if count > 1 else 0))
    try:
        yield
    finally:
        while _waiting:
            _waiting.pop().process.kill()


def taken() -> Standby:
    """A process that stands by, else a new one."""
    return _waiting.pop() if _waiting else Standby()


def _expected(devices: str, gpus: int | None) -> int:
    """How many devices will be used, as far as can be seen without torch."""
    if devices not in ("auto", "cuda"):
        return devices.count(",") + 1
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        seen = len(list(Path("/dev").glob("nvidia[0-9]*")))
    else:
        seen = len([name for name in visible.split(",") if name.strip()])
    return min(seen, gpus or seen)
