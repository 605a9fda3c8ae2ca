"""What GPUs did while frames were embedded: lines over time, as the report's page draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from virnucpro_core.embedding.series import in_words

WIDTH, HEIGHT = 420, 44
"""Of one line's box, in the units of the SVG's view box."""

_DRAWN = {
    "busy": ("Busy", "", 1.0, "100 %"),
    "power_w": ("Power", "limit_w", 1000.0, "{:,.0f} W"),
    "memory_bytes": ("Memory", "limit_bytes", 2.0**37, "{:,.0f} GB"),
    "celsius": ("Temperature", "", 100.0, "{:.0f} °C"),
}
"""Of each quantity its name, the record's key for where its axis ends, the end where that tells
nothing, and how it is said."""


class Line(NamedTuple):
    """One quantity: its name, the end of its axis, and the points of an SVG polyline."""

    name: str
    most: str
    points: str


class Gpu(NamedTuple):
    """One GPU: what it is, how it was used in words, for how many seconds, and its lines."""

    device: str
    said: str
    seconds: float
    lines: list[Line]


def read_gpu(device: str, record: Mapping[str, Any]) -> Gpu:
    """A GPU out of `embedded_on` of a summary.json, by the name of its device.

    Raises ValueError, TypeError or LookupError for what is no record of ours.
    """
    seconds = _numbers(record["seconds"])
    last = max(seconds) or 1.0  # of a run that ended with its first sample
    lines = []
    for name, (label, limit, most, said) in _DRAWN.items():
        if name not in record:
            continue
        most = float(record.get(limit) or most)
        values = _numbers(record[name])
        points = " ".join(
            f"{WIDTH * at / last:.1f},{HEIGHT * (1 - min(1.0, value / most)):.1f}"
            for at, value in zip(seconds, values, strict=True)
        )
        shown = most / 1e9 if name == "memory_bytes" else most
        lines.append(Line(label, said.format(shown), points))
    return Gpu(device, in_words(dict(record)), last, lines)


def _numbers(values: Any) -> list[float]:
    numbers = [float(value) for value in values]
    if not numbers or not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError("a GPU's series is no numbers")
    return numbers
