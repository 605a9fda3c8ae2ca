"""The figures of `evaluate` are their definitions, ties and weights included."""

from __future__ import annotations

from itertools import product
from xml.etree import ElementTree

import numpy as np
import pytest

from virnucpro_core.lab.curves import LEFT, SIDE, TOP, plot
from virnucpro_core.lab.heldout import found_at, roc_auc
from virnucpro_core.lab.metrics import FIGURES, Items, curve


def made_up(rng: np.random.Generator, number: int = 60) -> Items:
    """Few scores for many items, so that most are tied; some have none."""
    truth = rng.random(number) < 0.4
    tenth = rng.integers(0, 8, number) / 7 * 0.6 + truth * 0.4
    probability = np.where(rng.random(number) < 0.2, np.nan, tenth)
    score = np.where(np.isnan(probability), -np.inf, probability)
    return Items(truth, score, score >= 0.5, probability, rng.integers(0, 12, number))


def by_definition(items: Items) -> dict[str, float]:
    truth, score, call = items.truth, items.score, items.call
    assert call is not None
    pairs = list(product(score[truth], score[~truth]))
    found = {}
    precision = []
    for threshold in np.unique(score)[::-1]:
        above = score >= threshold
        recall, exact = above[truth].mean(), truth[above].mean()
        found[threshold] = recall, (above & ~truth).sum()
        precision.append((recall, exact))
    gained = np.diff([0, *(recall for recall, _ in precision)])
    average = sum(gain * exact for gain, (_, exact) in zip(gained, precision, strict=True))

    def at(false: float) -> float:
        allowed = false * (~truth).sum()
        return max([0.0, *(float(recall) for recall, wrong in found.values() if wrong <= allowed)])

    known = ~np.isnan(items.probability)
    probability, positive = items.probability[known], truth[known]
    tenth = np.minimum((probability * 10).astype(int), 9)
    gaps = [
        (tenth == n).mean() * abs(probability[tenth == n].mean() - positive[tenth == n].mean())
        for n in np.unique(tenth)
    ]
    exact, recall = truth[call].mean(), call[truth].mean()
    return {
        "auc": float(np.mean([(a > b) + (a == b) / 2 for a, b in pairs])),
        "average_precision": average,
        "found_at_1": at(0.01),
        "found_at_5": at(0.05),
        "f1": 2 * exact * recall / (exact + recall),
        "mcc": float(np.corrcoef(truth, call)[0, 1]),
        "sensitivity": recall,
        "false_positives": call[~truth].mean(),
        "brier": float(((probability - positive) ** 2).mean()),
        "calibration_error": sum(gaps),
    }


@pytest.mark.parametrize("seed", range(8))
def test_figures_are_their_definitions_whatever_is_tied_or_unscored(seed: int) -> None:
    items = made_up(np.random.default_rng(seed))
    figures = dict(zip(FIGURES, items.figures(), strict=True))
    assert figures == pytest.approx(by_definition(items), abs=1e-12)
    assert figures["auc"] == pytest.approx(roc_auc(items.truth, items.score))
    assert figures["found_at_5"] == found_at(items.truth, items.score, 0.05)


def test_an_item_that_weighs_two_counts_as_two() -> None:
    rng = np.random.default_rng(1)
    items, copies = made_up(rng), rng.integers(0, 4, 60)
    whole = items[np.repeat(np.arange(60), copies)]
    np.testing.assert_allclose(items.figures(copies.astype(float)), whole.figures(), atol=1e-12)


def test_figures_of_one_class_are_none_but_the_calls_of_that_class() -> None:
    items = made_up(np.random.default_rng(2))
    assert items.call is not None
    figures = dict(zip(FIGURES, items[items.truth].figures(), strict=True))
    assert figures["sensitivity"] == items.call[items.truth].mean()
    assert {name for name, value in figures.items() if np.isnan(value)} == {
        "auc",
        "false_positives",
    }


def test_a_curve_rises_from_nothing_to_all_with_a_point_for_each_score() -> None:
    truth = np.array([True, False, True, False])
    right, wrong = curve(truth, np.array([0.9, 0.5, 0.5, -np.inf]))
    assert right.tolist() == [0, 1, 2, 2]
    assert wrong.tolist() == [0, 0, 1, 2]


def test_intervals_draw_groups_not_items() -> None:
    items = made_up(np.random.default_rng(3))
    alone = Items(*(items.truth, items.score, items.call, items.probability), np.arange(60))
    many = alone[np.repeat(np.arange(60), 5)]
    np.testing.assert_allclose(many.intervals(), alone.intervals(), atol=1e-12)
    low, high = alone.intervals()
    narrow = Items(*(many.truth, many.score, many.call, many.probability), np.arange(300))
    assert (np.subtract(*narrow.intervals()[:, 0]) > low[0] - high[0]).all()
    assert low[0] < alone.figures()[0] < high[0]


def test_intervals_are_there_for_each_figure_though_the_first_items_are_not_drawn() -> None:
    rng = np.random.default_rng(5)
    score, truth = rng.random(40), rng.random(40) < 0.5
    items = Items(truth, score, score > 0.5, score, np.arange(40) // 4)
    assert np.isfinite(items.intervals()).all()


def test_intervals_of_a_single_group_are_none() -> None:
    items = made_up(np.random.default_rng(4))
    one = Items(*(items.truth, items.score, items.call, items.probability), 1 * items.truth)
    assert np.isnan(one.intervals()).all()


def test_a_plot_has_each_line_inside_its_square_and_names_it() -> None:
    points = np.array([[0, 0], [0.5, 0.9], [1, 1.0]])
    text = plot("a < b", ("x", "y"), {f"<{n}>": points / (n + 1) for n in range(8)}, (0, 1))
    root = ElementTree.fromstring(text)
    lines = [one.get("points", "") for one in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert len(lines) == 9
    for x, y in (pair.split(",") for line in lines for pair in line.split()):
        assert LEFT <= float(x) <= LEFT + SIDE
        assert TOP <= float(y) <= TOP + SIDE
    dotted = plot("a", ("x", "y"), {"l": np.array([[0, 0.5, 0.25], [1, 1, 0.75]])}, (0, 1))
    radii = [one.get("r") for one in ElementTree.fromstring(dotted).iter() if one.get("r")]
    assert radii == ["6.5", "10.2"]
    said = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "x", "y", "<0>", "<7>"} <= set(said)
