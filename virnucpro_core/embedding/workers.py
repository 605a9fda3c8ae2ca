"""One process a device, and what a signal does to them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from threading import Event
from types import FrameType
from typing import TypeVar

import torch

from virnucpro_core.errors import StoppedError, VirNucProError

logger = logging.getLogger("virnucpro.embed")

J = TypeVar("J")
Rank = Callable[[J, str, int, int, Event], None]
"""A module-level worker: (job, device, rank, world size, stop)."""


@contextmanager
def stop_on_signal() -> Iterator[Event]:
    """An event that SIGTERM, SIGINT or SIGUSR2 sets; off the main thread it stays unset."""
    stop = Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        logger.warning("%s: finishing the batch at hand", signal.Signals(number).name)
        stop.set()

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _work(rank_of: Rank[J], job: J, device: str, rank: int, world: int, report: Connection) -> None:
    logging.basicConfig(level=logging.INFO, format=f"%(name)s[{rank}]: %(message)s")
    if device == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world))
    try:
        with stop_on_signal() as stop:
            rank_of(job, device, rank, world, stop)
    except VirNucProError as error:
        report.send(error)
        raise SystemExit(error.exit_code) from None


def run_ranks(rank_of: Rank[J], job: J, devices: Sequence[str]) -> None:
    """Run a worker on each device: in this process for one device, else spawned, one each.

    All are waited for, so that a failed one takes no other's work with it. Raises the first
    failure; a signal is passed on to all and raises StoppedError.
    """
    world = len(devices)
    with stop_on_signal() as stop:
        if world == 1:
            rank_of(job, devices[0], 0, 1, stop)
            return
        spawn = multiprocessing.get_context("spawn")
        workers = []
        for rank, device in enumerate(devices):
            receiver, sender = spawn.Pipe(duplex=False)
            process = spawn.Process(
                target=_work, args=(rank_of, job, device, rank, world, sender), name=f"rank{rank}"
            )
            process.start()
            sender.close()
            workers.append((process, receiver))
        failures: list[VirNucProError] = []
        passed_on = False
        for rank, (process, receiver) in enumerate(workers):
            while process.is_alive():
                process.join(0.2)
                if stop.is_set() and not passed_on:
                    passed_on = True
                    for other, _ in workers:
                        other.terminate()
            if process.exitcode:
                try:
                    failures.append(receiver.recv())
                except EOFError:
                    failures.append(
                        VirNucProError(
                            f"the worker on {devices[rank]} ended with code {process.exitcode}; "
                            "what is finished is kept, run the same command to go on."
                        )
                    )
        if stop.is_set():
            raise StoppedError("stopped by a signal; run the same command to go on.")
        if failures:
            raise failures[0]
