"""Figures with their bars, and the sizes that they are taken at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """One figure, and the bar that it has to reach, or with `at_most` stay under."""

    name: str
    value: float
    unit: str
    bar: float | None = None
    at_most: bool = False

    @property
    def verdict(self) -> str:
        if self.bar is None:
            return ""
        return "pass" if (self.value <= self.bar) == self.at_most else "FAIL"

    def __str__(self) -> str:
        bar = "" if self.bar is None else f"{'<=' if self.at_most else '>='} {self.bar:g}"
        return f"{self.name:<58} {self.value:>10.4g} {self.unit:<9} {bar:<9} {self.verdict}"


@dataclass(frozen=True)
class Size:
    """Sizes of the two encoders, tokens a batch, and how often each run is timed.

    tables: frame tables whose lengths ESM-2 is timed on too. devices: all that are to be used.
    """

    esm2: tuple[int, int, int]
    dnabert_s: tuple[int, int, int, int, int]
    tokens: int
    repeats: int
    tables: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()


PUBLISHED_SIZE = Size((36, 2560, 40), (4096, 12, 768, 12, 3072), 32_768, 5)
SMALL_SIZE = Size((2, 64, 4), (64, 2, 48, 4, 96), 2048, 3)
