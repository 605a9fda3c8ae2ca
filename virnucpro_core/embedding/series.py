"""Samples of a GPU as series of bounded length, and those of several processes joined."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

Record = dict[str, Any]
"""Of one GPU, as JSON has it; docs/usage.md says what is in it."""

POINTS = 240
"""A series has at most so many: while there are more, each two of them become their mean."""

DIGITS = {"seconds": 1, "busy": 2, "memory_bytes": 0, "power_w": 0, "clock_mhz": 0, "celsius": 0}
"""What is sampled, and how exactly it is kept."""

Rows = NDArray[np.float64]
"""Of each point the number of its samples, then their sum in each quantity: (points, 7)."""


class Series:
    """Takes samples at a steady pace."""

    def __init__(self) -> None:
        self._values = array("d")

    @property
    def samples(self) -> int:
        return len(self._values) // len(DIGITS)

    def add(self, sample: dict[str, float]) -> None:
        """Take one sample; of a quantity that is missing in one there will be no series."""
        self._values.extend(sample.get(name, np.nan) for name in DIGITS)

    def record(self) -> Record:
        """The number of samples, their means, and the series, each with as many points."""
        values = np.reshape(self._values, (-1, len(DIGITS)))
        return _record(np.insert(values, 0, 1.0, axis=1), POINTS)


def _record(rows: Rows, most: int) -> Record:
    while len(rows) > most:
        rows = np.add.reduceat(rows, np.arange(0, len(rows), 2))
    samples = rows[:, 0].sum()
    means = rows[:, 1:].sum(0) / samples
    points = (rows[:, 1:] / rows[:, :1]).T
    known = {
        name: [_rounded(name, value) for value in [mean, *series]]
        for name, mean, series in zip(DIGITS, means.tolist(), points.tolist(), strict=True)
        if not np.isnan(mean)
    }
    return {
        "samples": round(samples),
        "mean": {name: values[0] for name, values in known.items() if name != "seconds"},
        **{name: values[1:] for name, values in known.items()},
    }


def _rounded(name: str, value: float) -> float:
    return round(value, DIGITS[name]) if DIGITS[name] else round(value)


def _rows(record: Record, begun: float) -> Rows:
    """The rows of a record, its seconds counted from another begin."""
    points = len(record["seconds"])
    columns = [np.array(record.get(name, [np.nan] * points), np.float64) for name in DIGITS]
    columns[0] += record["begun"] - begun
    each = record["samples"] / points
    rows: Rows = each * np.column_stack([np.ones(points), *columns])
    return rows


def joined(records: Iterable[Record], points: int = POINTS) -> list[Record]:
    """One record a GPU, of all that are told of it, with at most so many points."""
    whole = []
    for _, group in groupby(sorted(records, key=itemgetter("gpu", "begun")), itemgetter("gpu")):
        told = list(group)
        rows = np.concatenate([_rows(one, told[0]["begun"]) for one in told])
        samples = [one["samples"] for one in told]
        held = {
            reason: round(
                float(np.average([one["held_back"][reason] for one in told], weights=samples)), 3
            )
            for reason in told[0]["held_back"]
        }
        others = max(one["others"] for one in told)
        whole.append({**told[0], "held_back": held, "others": others, **_record(rows, points)})
    return whole


def in_words(record: Record) -> str:
    """How a GPU was used, as in "GPU busy 0.99, 680 W of 700, 1,755 MHz, 64 °C"."""
    mean, held = record["mean"], record["held_back"]
    limit = f" of {record['limit_w']}" if "limit_w" in record else ""
    said = {
        "busy": "busy {:.2f}",
        "power_w": f"{{:.0f}} W{limit}",
        "clock_mhz": "{:,.0f} MHz",
        "celsius": "{:.0f} °C",
    }
    parts = [text.format(mean[name]) for name, text in said.items() if name in mean]
    slowed = {
        "power": "at its power limit",
        "heat": "too hot for its full clock",
        "supply": "slowed by its power supply",
    }
    parts += [f"{slowed[why]} {share:.0%} of the time" for why, share in held.items() if share]
    return f"GPU {', '.join(parts)}"
