"""Probabilities at a sample's own share of viruses, and the share of false ones among calls."""

from __future__ import annotations

import time

import numpy as np
import pytest

from virnucpro_core.results.prevalence import (
    LEAST_SHARE,
    corrected,
    estimated_share,
    false_discovery,
)

PRIOR = 0.3


def sample(
    share: float, size: int, seed: int = 0
) -> tuple[
    np.ndarray[tuple[int], np.dtype[np.float64]], np.ndarray[tuple[int], np.dtype[np.bool_]]
]:
    """Scores, calibrated for PRIOR, of contigs of which a share is viral, and which are."""
    rng = np.random.default_rng(seed)
    viral = rng.random(size) < share
    x = rng.normal(np.where(viral, 1.5, -1.5), 1)
    odds = 3 * x + np.log(PRIOR / (1 - PRIOR))  # of two such normals the log likelihood ratio is 3x
    return 1 / (1 + np.exp(-odds)), viral


def test_correction_to_the_same_share_changes_nothing() -> None:
    score = np.array([0.0, 0.2, 0.9, 1.0])
    assert np.allclose(corrected(score, PRIOR, PRIOR), score)


def test_correction_is_bayes_rule() -> None:
    # a likelihood ratio of 9 at even odds; one virus in ten makes it even again
    assert corrected(np.array([0.9]), 0.5, 0.1)[0] == pytest.approx(0.5)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.5, 0.9])
def test_share_of_a_large_sample_is_found(share: float) -> None:
    score, viral = sample(share, 20_000)
    assert estimated_share(score, PRIOR) == pytest.approx(viral.mean(), rel=0.1, abs=0.003)


def test_share_of_a_sample_without_viruses_is_next_to_none() -> None:
    score, _ = sample(0.0, 5000)
    assert LEAST_SHARE <= estimated_share(score, PRIOR) < 0.005


def test_share_of_a_sample_of_one_kind_alone_is_neither_none_nor_all() -> None:
    assert estimated_share(np.zeros(500), PRIOR) == LEAST_SHARE == 1e-4
    assert estimated_share(np.ones(500), PRIOR) == 1 - LEAST_SHARE


def test_share_of_many_contigs_is_found_in_a_few_passes_over_them() -> None:
    score = np.repeat([0.99, 0.01], [50_000, 450_000])
    begun = time.process_time()
    assert estimated_share(score, PRIOR) == pytest.approx(0.0985, abs=1e-4)
    assert time.process_time() - begun < 2  # all the steps that there may be took 8


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_false_discovery_stated_is_the_true_one(share: float) -> None:
    score, viral = sample(share, 50_000)
    probability = corrected(score, PRIOR, estimated_share(score, PRIOR))
    rate = false_discovery(probability)
    for stated in (0.01, 0.05, 0.2):
        called = rate <= stated
        assert (~viral[called]).mean() == pytest.approx(stated, abs=0.3 * stated + 0.003)


def test_false_discovery_of_equals_is_the_same_and_grows_with_rank() -> None:
    rate = false_discovery(np.array([0.5, 0.9, 0.5, 1.0]))
    assert rate.tolist() == pytest.approx([1.1 / 4, 0.1 / 2, 1.1 / 4, 0.0])
    assert false_discovery(np.zeros(0)).tolist() == []
