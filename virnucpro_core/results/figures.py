"""Geometry of the report's figures; the page's template draws it as SVG."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from virnucpro_core.results.calls import BoolArray, Float32Array
from virnucpro_core.sequences.windows import Int64Array

SCORE_BINS = 80
HISTOGRAM_BINS = 40
PER_DECADE = 36
DECADES = 10

# The plot within the SVG's view box, in its units.
WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 508, 12, 262


SCORE_EDGES = np.arange(SCORE_BINS + 1) / SCORE_BINS
LENGTH_EDGES = np.ceil(10 ** (np.arange(DECADES * PER_DECADE + 1) / PER_DECADE))


@dataclass(frozen=True)
class Mark:
    """A bar (x, y, width, height) or, when its width is 0, a dot of radius `height`.

    show: what the table is to be filtered by to have its contigs, and them alone.
    """

    call: str
    x: float
    y: float
    width: float
    height: float
    count: int
    scores: str
    show: str
    opacity: float = 1.0


@dataclass(frozen=True)
class Figure:
    """Marks, and ticks as (position, label) on either axis."""

    marks: list[Mark]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def _show(call: str, scores: tuple[int, int], lengths: tuple[int, int] | None = None) -> str:
    """JSON of a filter: half-open bins of scores and of lengths, the last score's bin closed."""
    low, high = scores
    of: dict[str, object] = {"call": call, "score_from": low / SCORE_BINS}
    if high < SCORE_BINS:
        of["score_below"] = high / SCORE_BINS
    if lengths is not None:
        first, last = (int(LENGTH_EDGES[edge]) for edge in lengths)
        of |= {"length_from": first, "length_to": last - 1}
    return json.dumps(of)


class ScoreGrid:
    """Numbers of contigs by call (other, virus), binned length and binned score.

    All that the figures need, of one size however many contigs there are.
    """

    def __init__(self) -> None:
        self.counts = np.zeros((2, DECADES * PER_DECADE, SCORE_BINS), np.int64)

    def add(self, lengths: Int64Array, scores: Float32Array, is_virus: BoolArray) -> None:
        # as printed: of a float32 the fifth digit is noise, which may lie on the other side
        printed = np.round(scores.astype(np.float64), 6)
        x = np.searchsorted(LENGTH_EDGES, np.maximum(lengths, 1), "right") - 1
        y = np.searchsorted(SCORE_EDGES, printed, "right") - 1
        x, y = np.clip(x, 0, len(LENGTH_EDGES) - 2), np.clip(y, 0, SCORE_BINS - 1)
        np.add.at(self.counts, (is_virus.astype(int), x, y), 1)

    def by_score(self) -> Int64Array:
        """Numbers of contigs (2, HISTOGRAM_BINS) by call (other, virus) and score."""
        both: Int64Array = self.counts.sum(axis=1).reshape(2, HISTOGRAM_BINS, -1).sum(axis=2)
        return both

    def histogram(self) -> Figure:
        """Contigs by score: viral ones above, others below, each on its own scale."""
        marks, y_ticks = [], []
        width = (RIGHT - LEFT) / HISTOGRAM_BINS
        middle = (TOP + BOTTOM) / 2
        wide = SCORE_BINS // HISTOGRAM_BINS
        for call, base in (("virus", middle - 10), ("other", float(BOTTOM))):
            counts = self.by_score()[int(call == "virus")]
            top = _nice(int(counts.max()))
            scale = (middle - 10 - TOP) / top
            marks += [
                Mark(
                    *(call, LEFT + i * width, base - n * scale, width - 1, n * scale, n),
                    f"{i / HISTOGRAM_BINS:g}–{(i + 1) / HISTOGRAM_BINS:g}",
                    _show(call, (i * wide, (i + 1) * wide)),
                )
                for i, n in enumerate(counts.tolist())
                if n
            ]
            ticks = [0, top] if top % 2 else [0, top // 2, top]
            y_ticks += [(base - tick * scale, _count(tick)) for tick in ticks]
        return Figure(marks, _score_ticks(LEFT, RIGHT), y_ticks)

    def scatter(self) -> Figure:
        """Score against length; a dot is fuller the more contigs it has."""
        occupied = np.flatnonzero(self.counts.any(axis=(0, 2)))
        if not len(occupied):
            return Figure([], [], _score_ticks(BOTTOM, TOP))
        low, high = int(occupied[0]) - 1, int(occupied[-1]) + 2
        step = (RIGHT - LEFT) / (high - low)
        cells = np.argwhere(self.counts)
        radius = 3.2 if len(cells) < 500 else 1.9
        most = np.log10(self.counts.max())
        faintest = 0.35 if most > 2 else 0.6
        marks = []
        for virus, x, y in cells.tolist():
            n = int(self.counts[virus, x, y])
            center = BOTTOM - (y + 0.5) / SCORE_BINS * (BOTTOM - TOP)
            share = np.log10(n) / most if most else 1.0
            call = "virus" if virus else "other"
            marks.append(
                Mark(
                    *(call, LEFT + (x + 0.5 - low) * step, center, 0, radius * (1 + 0.3 * share)),
                    *(n, "", _show(call, (y, y + 1), (x, x + 1))),
                    faintest + (0.85 - faintest) * share,
                )
            )
        digits = (1,) if high - low > 2.2 * PER_DECADE else (1, 2, 5)
        x_ticks = [
            (LEFT + (position - low) * step, bases(length))
            for length in (digit * 10**zeros for zeros in range(DECADES) for digit in digits)
            if low <= (position := np.log10(length) * PER_DECADE) <= high
        ]
        return Figure(marks, x_ticks, _score_ticks(BOTTOM, TOP))


def _score_ticks(start: float, end: float) -> list[tuple[float, str]]:
    return [(start + (end - start) * tick / 4, f"{tick / 4:g}") for tick in range(5)]


def _nice(value: int) -> int:
    """The next round number."""
    power: int = 10 ** (len(str(value)) - 1)
    return power * next(k for k in (1, 2, 3, 4, 6, 8, 10) if k * power >= value)


def _count(count: int) -> str:
    if count < 10_000:
        return f"{count:,}"
    return f"{count / 1e6:g} M" if count >= 1e6 else f"{count / 1e3:g} k"


def duration(seconds: float) -> str:
    """In the unit that a reader would take, and the next one."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 0.05 else "<0.1 s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min"


def bases(count: int) -> str:
    """A number of bases in three figures, with its unit."""
    for size, unit in ((10**9, "Gb"), (10**6, "Mb"), (10**3, "kb")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bp"
