"""How far a stage is: a live bar on a terminal or in a notebook, else a line now and then."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple, TextIO

from virnucpro_core.errors import need_room

if TYPE_CHECKING:
    from rich.console import Console

LINE_SECONDS, LINE_SHARE = 30.0, 0.05
"""A line is written after so much time, or when so much more is done."""

LINES_APART = 5.0
"""Seconds between two lines, at least."""

REFRESH = 0.25
"""Seconds between two states of a bar."""


def counted(number: int, one: str) -> str:
    """As in "1 shard" and "12 shards"."""
    return f"{number} {one}{'s' * (number != 1)}"


class Row(NamedTuple):
    """How far a stage is. label: the worker's, where there are several.

    kept: units that an earlier run has done; done: those among them. total: None where it is not
    known. note: what else there is to say now, such as a GPU's state.
    """

    label: str
    kept: int
    done: int
    total: int | None
    note: str


Show = Callable[[Row], None]

_wanted: ContextVar[bool] = ContextVar("wanted", default=True)
_relay: list[Show] = []


@contextmanager
def bars(wanted: bool) -> Iterator[None]:
    """Whether stages may show bars within."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def relay(show: Show) -> None:
    """Have all progress of this process shown by another one."""
    _relay[:] = [show]


def _in_notebook() -> bool:
    if "IPython" not in sys.modules or importlib.util.find_spec("ipywidgets") is None:
        return False
    from rich.console import Console

    return Console().is_jupyter


def _live() -> bool:
    """Whether there is something to draw bars on, and nobody who asked for quiet."""
    if not _wanted.get() or logging.getLogger("virnucpro").level > logging.INFO:
        return False
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return (terminal and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")) or (
        _in_notebook()
    )


class _Pace:
    """Units a second, since the last moment at which none was done."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def of(self, row: Row) -> tuple[float, timedelta | None]:
        """The rate, and how long the rest takes, where that can be known."""
        now, new = time.monotonic(), row.done - row.kept
        if new <= 0:
            self._start = now
            return 0.0, None
        rate = new / max(now - self._start, 1e-9)
        left = None if row.total is None else max(0, row.total - row.done) / rate
        return rate, None if left is None else timedelta(seconds=round(left))


class _Lines:
    """Log lines with the time of day, so that a scheduler's log file can be read too."""

    def __init__(self, stage: str, unit: str) -> None:
        self._logger, self._unit = logging.getLogger(f"virnucpro.{stage}"), unit
        self._rows: dict[str, Row] = {}
        self._pace = _Pace()
        self._said, self._share = time.monotonic(), 0.0

    def show(self, row: Row) -> None:
        self._rows[row.label] = row
        whole = _together(self._rows.values())
        rate, left = self._pace.of(whole)
        share = whole.done / whole.total if whole.total else 0.0
        if not rate:
            self._share = share
        waited = time.monotonic() - self._said
        more = share - self._share >= LINE_SHARE and waited >= LINES_APART
        if not rate or not (more or waited >= LINE_SECONDS):
            return
        self._said, self._share = time.monotonic(), share
        amount = f"{share:.0%} of {whole.total:,}" if whole.total else f"{whole.done:,}"
        parts = [f"{time.strftime('%H:%M:%S')} {amount} {self._unit}", f"{rate:,.0f} a second"]
        parts += [f"{left} left"] if left is not None else []
        self._logger.info(", ".join([*parts, whole.note] if whole.note else parts))


def _together(rows: Iterable[Row]) -> Row:
    _, kept, done, totals, _ = zip(*rows, strict=True)
    notes = [f"{row.label} {row.note}".strip() for row in rows if row.note]
    total = None if None in totals else sum(totals)
    return Row("", sum(kept), sum(done), total, "; ".join(notes))


class _Above:
    """Where log lines go while bars are drawn: above them."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, text: str) -> None:
        self._console.out(text.removesuffix("\n"), highlight=False)

    def flush(self) -> None:
        pass  # the console has no buffer of its own


@contextmanager
def _logging_above(console: Console) -> Iterator[None]:
    loggers = logging.getLogger(), logging.getLogger("virnucpro")
    moved: list[tuple[logging.StreamHandler[TextIO | _Above], TextIO]] = [
        (handler, handler.stream)
        for logger in loggers
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
    ]
    for handler, _ in moved:
        handler.setStream(_Above(console))
    try:
        yield
    finally:
        for handler, stream in moved:
            handler.setStream(stream)


@contextmanager
def _drawn(stage: str, unit: str) -> Iterator[Show]:
    """A bar a label on stderr, gone at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn

    console = Console(stderr=True)
    drawn = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[said]}", markup=False),
        console=console,
        transient=True,
        expand=True,
        redirect_stdout=False,
        refresh_per_second=1 / REFRESH,
    )
    tasks: dict[str, TaskID] = {}
    paces: defaultdict[str, _Pace] = defaultdict(_Pace)

    def show(row: Row) -> None:
        rate, left = paces[row.label].of(row)
        parts = [f"{row.done / row.total:.0%}"] if row.total else []
        parts += [f"{rate:,.0f} {unit}/s"] if rate else []
        parts += [f"{left} left"] if left is not None else []
        parts += [row.note] if row.note else []
        said = "  ".join(parts)
        if row.label not in tasks:
            name = f"{stage} {row.label}".strip()
            tasks[row.label] = drawn.add_task(name, total=row.total, said=said)
        drawn.update(tasks[row.label], completed=row.done, total=row.total, said=said)

    need_room()
    with _logging_above(console), drawn:
        try:
            yield show
        finally:
            console.quiet = console.is_jupyter  # which else shows an empty line at the end of each


@contextmanager
def screen(stage: str, unit: str) -> Iterator[Show]:
    """What shows the rows of a stage, in whatever way is right for this process."""
    if _relay:
        yield _relay[0]
    elif _live():
        with _drawn(stage, unit) as show:
            yield show
    else:
        yield _Lines(stage, unit).show


class Progress:
    """Shows how much of a stage is done while its `with` lasts.

    total: units, None where nobody knows.
    """

    def __init__(self, stage: str, total: int | None, unit: str, note: str = "") -> None:
        self._screen, self._stack = screen(stage, unit), ExitStack()
        self._row = Row("", 0, 0, total, note)
        self._told = 0.0

    def __enter__(self) -> Progress:
        self._show = self._stack.enter_context(self._screen)
        self._tell()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begin(self, total: int, kept: int) -> None:
        """Say how much there is, once that is known, and how much of it is done already."""
        self._row = self._row._replace(kept=kept, done=kept, total=total, note="")
        self._tell()

    def advance(self, count: int, note: str = "") -> None:
        """Count more units as done."""
        row = self._row
        done = row.done + count
        over = row.total is not None and done > row.total  # it was a guess
        self._row = row._replace(done=done, total=done if over else row.total, note=note)
        if time.monotonic() - self._told >= REFRESH or done == row.total:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        self._show(self._row)
