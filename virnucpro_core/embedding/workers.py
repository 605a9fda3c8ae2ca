"""One process a device: its log, its end, and what a signal does to it."""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TypeVar

import torch

from virnucpro_core.embedding.standby import taken
from virnucpro_core.errors import InputError, StoppedError, VirNucProError
from virnucpro_core.host import cores
from virnucpro_core.progress import Row, Show, relay, screen

logger = logging.getLogger("virnucpro.embed")

J = TypeVar("J")
Rank = Callable[[J, str, int, int, Event], None]
"""A module-level worker: (job, device, rank, world size, stop)."""


@contextmanager
def stop_on_signal() -> Iterator[Event]:
    """An event that SIGTERM, SIGINT or SIGUSR2 sets; off the main thread it stays unset.

    Raises StoppedError at the end where it is set, be it after the last batch.
    """
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
    if stop.is_set():
        raise StoppedError("stopped by a signal; run the same command to go on.")


UNGUARDED = (
    "a second device has a process of its own, which runs the script once more to find its "
    'functions: put what the script does under `if __name__ == "__main__":`, in a file.'
)


def refuse_respawn() -> None:
    """End a process that is being spawned and, for want of a main guard, does it all once more.

    To be called first by whatever spawns, before it waits for locks that the first one holds. The
    process that spawned it says why (see `_Worker.failure`).
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(InputError.exit_code)


Said = logging.LogRecord | Row | VirNucProError | None
"""What a worker says: a line of its log, how far it is, and last its refusal, or None: done."""


class _Speaker(logging.Handler):
    """A worker's end of the pipe. The lock is the handler's, which a log line has taken already."""

    def __init__(self, pipe: Connection, device: str) -> None:
        super().__init__()
        self._pipe, self._device = pipe, device

    def emit(self, record: logging.LogRecord) -> None:
        line = logging.makeLogRecord(record.__dict__)  # what it was made of may not be sent
        line.name, line.msg = f"[{self._device}] {record.name}", record.getMessage()
        line.args = line.exc_info = None
        self.say(line)

    def say(self, what: Said) -> None:
        assert self.lock is not None
        with self.lock, suppress(OSError):  # where the parent is gone, this one ends too
            self._pipe.send(what)


def _log_into(log: Path, speaker: _Speaker, level: int) -> None:
    """Send stdout and stderr into `log`, as file descriptors, so that native code's go there too.

    Log lines go there as well, and those of `level` to the parent, with the device.
    """
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr  # written line by line, so that a killed worker's lines are there
    faulthandler.enable()
    into = logging.StreamHandler(sys.stderr)
    into.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    speaker.setLevel(level)
    logging.basicConfig(level=logging.WARNING, handlers=[into, speaker])
    logging.getLogger("virnucpro").setLevel(min(level, logging.INFO))


def _stop_without_parent(stop: Event) -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        stop.set()


def _work(
    report: Connection,
    rank_of: Rank[J],
    job: J,
    device: str,
    rank: int,
    world: int,
    own: tuple[Path, int],
) -> None:
    """A worker's process: reports None at the end, or its refusal; nothing when it dies."""
    log, level = own
    speaker = _Speaker(report, device)
    _log_into(log, speaker, level)
    relay(speaker.say)
    torch.set_num_threads(max(1, cores() // world))
    try:
        with stop_on_signal() as stop:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            threading.Thread(target=_stop_without_parent, args=(stop,), daemon=True).start()
            rank_of(job, device, rank, world, stop)
    except VirNucProError as error:
        print(error, file=sys.stderr)
        speaker.say(error)
        raise SystemExit(error.exit_code) from None
    speaker.say(None)
    sys.stderr.flush()
    os._exit(0)  # the interpreter's own end takes up to a second with torch


class _Worker:
    """A worker that was started. show: gets how far it is, under the worker's label."""

    def __init__(
        self, rank_of: Rank[J], job: J, devices: Sequence[str], rank: int, log: Path, show: Show
    ):
        device = devices[rank]
        self.device, self.log = device, log
        self._show = show
        self._label = device if devices.count(device) == 1 else f"{device} ({rank})"
        self._ended, self._refusal = False, None
        log.unlink(missing_ok=True)  # its own first act is to make it
        standby = taken()
        self.process, self._pipe = standby.process, standby.report
        own = (log, logging.getLogger("virnucpro").getEffectiveLevel())
        standby.work(_work, rank_of, job, device, rank, len(devices), own)

    def hear(self) -> None:
        """Take in all that it has said by now: its log lines appear here too."""
        with suppress(EOFError, OSError):  # it is gone
            while self._pipe.poll():
                match self._pipe.recv():
                    case logging.LogRecord() as line:
                        logger.handle(line)
                    case Row() as row:
                        self._show(row._replace(label=self._label))
                    case end:
                        self._ended, self._refusal = True, end

    def failure(self) -> VirNucProError | None:
        """Why it ended, if not because it was done: its refusal, or its death and ten lines."""
        self.process.join()
        self.hear()
        if self._ended:
            return self._refusal
        code = self.process.exitcode or 0
        script = getattr(sys.modules["__main__"], "__file__", None)
        unread = script is not None and not Path(script).exists()  # it came by a pipe
        if not self.log.exists() and (code == InputError.exit_code or (unread and code > 0)):
            return InputError(UNGUARDED)
        names = {-number: number.name for number in signal.Signals}
        how = f"ended with code {code}" if code >= 0 else f"was killed by {names.get(code, -code)}"
        how += " (memory may have run out)" if code == -signal.SIGKILL else ""
        lines: list[str] = []
        if self.log.exists():
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 65_536))
                lines = file.read().decode(errors="replace").splitlines()[-10:]
        said = "".join(f"\n  {line}" for line in lines) or " nothing"
        # what killed it from outside may be gone on the next try; a fault of its own would not
        outside = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
        kind = StoppedError if -code in outside else VirNucProError
        failure = kind(
            f"the worker on {self.device} {how}; what is finished is kept, run the same command "
            f"to go on. {self.log} says last:{said}"
        )
        if code < 0 and kind is VirNucProError:  # a crash, as a shell tells it of one process
            failure.exit_code = 128 - code
        return failure


def run_ranks(rank_of: Rank[J], job: J, devices: Sequence[str], output: Path) -> None:
    """Run a worker on each device: in this process for one device, else spawned, one each.

    What a spawned one prints goes into a log of its own beside the output, `<stem>.rank0.log` …;
    its log lines appear here too. All are waited for, so that a failed one takes no other's work
    with it. Raises the first failure; a signal is passed on to all and raises StoppedError.
    """
    refuse_respawn()
    with stop_on_signal() as stop:
        if len(devices) == 1:
            rank_of(job, devices[0], 0, 1, stop)
            return
        output.parent.mkdir(parents=True, exist_ok=True)
        with screen("embed", "tokens") as show:
            running = []
            for rank in range(len(devices)):
                log = output.with_name(f"{output.stem}.rank{rank}.log")
                running.append(_Worker(rank_of, job, devices, rank, log, show))
            failures = _until_all_end(running, stop)
    if failures:
        raise failures[0]


def _until_all_end(running: list[_Worker], stop: Event) -> list[VirNucProError]:
    failures: list[VirNucProError] = []
    passed_on = False
    while running:
        ended = wait([worker.process.sentinel for worker in running], timeout=0.2)
        for worker in running:
            worker.hear()
        for worker in [one for one in running if one.process.sentinel in ended]:
            running.remove(worker)
            if failure := worker.failure():
                failures.append(failure)
                if not stop.is_set() and (running or failures[1:]):
                    logger.error("[%s] %s", worker.device, failure)
        if stop.is_set() and not passed_on:
            passed_on = True
            for worker in running:
                worker.process.terminate()
    return failures
