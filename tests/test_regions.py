"""Viral stretches of a contig."""

from __future__ import annotations

import time

import numpy as np
import pytest

from virnucpro_core.results.regions import (
    Segment,
    maximal_segments,
    viral_segments,
)


def by_definition(scores: list[float], first: int = 0) -> list[Segment]:
    """The segment of the greatest score, and those of what lies on either side of it."""
    sums = [
        (sum(scores[a:b]), a, b) for a in range(len(scores)) for b in range(a + 1, len(scores) + 1)
    ]
    if not sums or max(sums)[0] <= 0:
        return []
    best, a, b = max(sums, key=lambda part: (part[0], -(part[2] - part[1])))
    return [
        *by_definition(scores[:a], first),
        Segment(first + a, first + b, best),
        *by_definition(scores[b:], first + b),
    ]


@pytest.mark.parametrize("seed", range(40))
def test_segments_of_random_scores_are_those_of_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(rng.uniform(-1, 1), 1, int(rng.integers(0, 30))).tolist()
    found, expected = maximal_segments(scores), by_definition(scores)
    assert [s[:2] for s in found] == [s[:2] for s in expected]
    assert np.allclose([s.score for s in found], [s.score for s in expected])


def test_segments_of_a_paper_s_example_are_as_printed_there() -> None:
    """Ruzzo and Tompa 1999, figure 1."""
    scores = [4, -5, 3, -3, 1, 2, -2, 2, -2, 1, 5]
    assert maximal_segments(scores) == [(0, 1, 4), (2, 3, 3), (4, 11, 7)]


@pytest.mark.parametrize("scores", [[0.0], [0.0, -1.0, 0.0], [-2.0, 0.0]])
def test_scores_of_nothing_are_no_segment(scores: list[float]) -> None:
    assert maximal_segments(scores) == []


def test_segments_of_a_chromosome_that_falls_all_along_take_a_pass_over_it() -> None:
    begun = time.process_time()
    assert len(maximal_segments([1.0, -2.0] * 40_000)) == 40_000
    assert time.process_time() - begun < 5  # looking at all those before each took a minute


def test_a_stretch_of_viral_windows_is_a_region_over_a_gap_without_scores() -> None:
    odds = np.full(60, -3.0)
    odds[20:32] = 4.0
    odds[24:27] = np.nan
    (region,) = viral_segments(odds)
    assert region == (20, 32, 2.0 * 9)


@pytest.mark.parametrize(("windows", "regions"), [(1, []), (5, []), (6, [(20, 26, 12.0)])])
def test_six_windows_are_a_region_and_fewer_none_however_high_they_score(
    windows: int, regions: list[object]
) -> None:
    odds = np.full(60, -3.0)
    odds[20 : 20 + windows] = 1e9
    assert viral_segments(odds) == regions


@pytest.mark.parametrize(("windows", "regions"), [(23, []), (24, [(0, 24, 12.0)])])
def test_windows_that_say_little_are_a_region_from_a_sum_of_12_on(
    windows: int, regions: list[object]
) -> None:
    assert viral_segments(np.full(windows, 0.5)) == regions
    assert viral_segments(np.zeros(windows)) == []
