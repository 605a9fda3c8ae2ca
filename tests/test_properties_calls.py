"""Whatever the scores: the same calls as by a slow and plain reading of the rules."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_properties import always, plain_windows

from virnucpro_core.models.rule import FEATURES, ContigRule
from virnucpro_core.results.calls import WindowCalls
from virnucpro_core.results.contigs import contig_rows, viral_stretches
from virnucpro_core.results.prevalence import false_discovery
from virnucpro_core.results.regions import maximal_segments

pytestmark = pytest.mark.usefixtures("one_thread")


def plain_segments(scores: list[int]) -> list[tuple[int, int, int]]:
    """Segments of which each part scores less, and that lie in no other such segment."""
    n = len(scores)
    sums = {(a, b): sum(scores[a:b]) for a in range(n) for b in range(a + 1, n + 1)}
    good = [
        (a, b)
        for (a, b), total in sums.items()
        if total > 0
        and all(
            sums[c, d] < total for c in range(a, b) for d in range(c + 1, b + 1) if (c, d) != (a, b)
        )
    ]
    largest = [
        (a, b) for a, b in good if not any(c <= a and b <= d and (a, b) != (c, d) for c, d in good)
    ]
    return [(a, b, sums[a, b]) for a, b in sorted(largest)]


@always(300)
@given(st.lists(st.integers(-4, 4), max_size=11))
def test_segments_of_any_scores_are_those_of_the_definition_ties_too(scores: list[int]) -> None:
    assert maximal_segments(scores) == plain_segments(scores)


window_scores = st.tuples(
    st.integers(0, 3),  # frames; without any, a run may be read
    st.booleans(),
    *[st.integers(1, 15).map(lambda n: n / 16)] * 2,  # scores of others and viruses, often equal
)
RULE = ContigRule((1.0, 0.5, 0.25, 0.125, 0.3, -0.1, 0.2), 0.5)
WINDOW = 30


def plain_odds(other: float, virus: float) -> float:
    return (math.log(virus / (1 - virus)) - math.log(other / (1 - other))) / 2


def plain_regions(odds: list[float | None]) -> list[tuple[int, int]]:
    """Windows [first, last) of a contig's viral stretches."""
    scores = [0.0 if x is None else min(max(x, -2.0), 2.0) for x in odds]
    return [(s.first, s.last) for s in maximal_segments(scores) if s.score >= 12]


@always(150)
@given(
    st.lists(
        st.one_of(
            st.lists(window_scores, max_size=6),
            st.lists(st.just((1, False, 1 / 16, 15 / 16)), min_size=6, max_size=16),
            st.lists(st.just((0, True, 1 / 16, 15 / 16)), min_size=6, max_size=16),
        ),
        min_size=1,
        max_size=4,
    ),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_scores_and_evidence_of_any_contigs_are_those_of_a_plain_count(
    drawn: list[list[tuple[int, bool, float, float]]], random: Any, ruled: bool
) -> None:
    lengths = [max(0, WINDOW * len(one) - random.randrange(WINDOW)) for one in drawn]
    texts = ["".join(random.choices("ACGTN", [9, 9, 9, 9, 1], k=length)) for length in lengths]
    calls = WindowCalls.of(np.array([len(text) for text in texts], np.int64), WINDOW)
    for contig, own in enumerate(drawn):
        for number, (frames, run, other, virus) in enumerate(own, 1):
            for time in range(frames or int(run)):  # of several, the first has the highest scores
                scores = np.array([[other, virus]], np.float32) / np.float32(1 + time)
                calls.add(np.array([contig]), np.array([number]), scores, np.array([not frames]))
    rule = RULE if ruled else None
    inventory = pa.record_batch(
        [pa.array([f"c{n}" for n in range(len(texts))]), pa.array([*map(len, texts)]), texts],
        ["contig", "length", "sequence"],
    )
    rows = contig_rows(inventory, calls, rule).to_pylist()
    regions: list[tuple[object, ...]] = []
    for contig, (own, text, row) in enumerate(zip(drawn, texts, rows, strict=True)):
        places = plain_windows(len(text), WINDOW)
        read = [n for n, (frames, run, _, _) in enumerate(own) if frames or run]
        covered = {at for n in read for at in range(*places[n]) if text[at] in "ACGT"}
        assert row["windows"] == len(places)
        assert row["scored_windows"] == len(read)
        assert row["evidence_bp"] == len(covered)
        viral_windows = [n for n in read if own[n][3] >= own[n][2]]
        assert row["viral_windows"] == len(viral_windows)
        odds = {n: plain_odds(*own[n][2:]) for n in read}
        if not read:
            assert row["score"] is row["viral_fraction"] is row["mean_virus_score"] is None
            assert (row["reason"] == "too_short") == (len(text) < 3)
            continue
        n, weight = len(read), dict(zip(FEATURES, RULE.weights, strict=True))
        about = pytest.approx
        assert row["reason"] is None
        assert row["viral_fraction"] == about(len(viral_windows) / n, rel=1e-3)
        assert row["max_virus_score"] == about(max(own[n][3] for n in read), rel=1e-3)
        assert row["mean_virus_score"] == about(sum(own[n][3] for n in read) / n, rel=1e-3)
        framed = [n for n in read if own[n][0]]
        sums = dict.fromkeys(FEATURES, 0.0)
        for at in read:
            kind = "frames" if at in framed else "runs"
            sums[kind] += odds[at] / n
            sums[f"{kind}_log"] += odds[at] / n * math.log(n)
        sums |= {"share": len(framed) / n, "log": math.log(n), "one": 1.0}
        total = sum(
            weight * sums[name] for name, weight in zip(FEATURES, RULE.weights, strict=True)
        )
        score = 1 / (1 + math.exp(-total)) if ruled else len(viral_windows) / n
        assert row["score"] == about(score, rel=1e-3)
        by_window = [odds.get(at) for at in range(len(places))]
        if ruled:
            by_window = [
                None if x is None
                else weight["frames"] * x + weight["share"] + weight["one"] if at in framed
                else weight["runs"] * x + weight["one"]
                for at, x in enumerate(by_window)
            ]  # fmt: skip
        for first, last in plain_regions(by_window):
            inside = [own[at][3] for at in range(first, last) if at in read]
            mean = sum(inside) / len(inside)
            regions.append(
                (contig, places[first][0], places[last - 1][1], len(inside), about(mean))
            )
    assert viral_stretches(calls, rule) == regions


@always(200)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9, 1.0]), min_size=1, max_size=12))
def test_error_rate_of_any_probabilities_is_the_mean_of_those_called_with_each(
    probabilities: list[float],
) -> None:
    found = false_discovery(np.array(probabilities))
    for own, rate in zip(probabilities, found.tolist(), strict=True):
        called = [1 - other for other in probabilities if other >= own]
        assert rate == pytest.approx(sum(called) / len(called))
