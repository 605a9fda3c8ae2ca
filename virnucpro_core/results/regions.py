"""Viral stretches of a contig: runs of windows whose scores add up to more than any part of them.

All maximal scoring segments of a sequence of scores, in one pass (Ruzzo and Tompa 1999, ISMB
7:234-241).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from virnucpro_core.models.rule import Float64Array

LEAST_SCORE = 12.0
"""Of a region, in log-odds; chosen, as the rest, by planted proviruses: docs/calls.md."""
CLIP = 2.0
"""The most log-odds that one window says, for or against."""


class Segment(NamedTuple):
    """Items [first, last) and the sum of their scores."""

    first: int
    last: int
    score: float


def maximal_segments(scores: Iterable[float]) -> list[Segment]:
    """All maximal scoring segments of a sequence, in order; none of them has a score of 0 or less.

    No segment within one, and none that overlaps it, has a greater score.
    """
    # Of each segment: first, last, the cumulative scores before it and at its end, and which of the
    # earlier ones is the last with less before it: past those between, the search need not look.
    found: list[tuple[int, int, float, float, int]] = []
    total = 0.0
    for at, score in enumerate(scores):
        before, total = total, total + score
        if score <= 0:
            continue
        first, left, right = at, before, total
        while True:
            j = len(found) - 1
            while j >= 0 and found[j][2] >= left:
                j = found[j][4]
            if j < 0 or found[j][3] >= right:
                break
            first, left = found[j][0], found[j][2]
            del found[j:]
        found.append((first, at + 1, left, right, j))
    return [Segment(first, last, right - left) for first, last, left, right, _ in found]


def viral_segments(odds: Float64Array) -> list[Segment]:
    """Viral stretches of a contig, by its windows' log-odds (N), NaN for those without a score."""
    scores = np.clip(np.nan_to_num(odds), -CLIP, CLIP)
    return [
        segment for segment in maximal_segments(scores.tolist()) if segment.score >= LEAST_SCORE
    ]
