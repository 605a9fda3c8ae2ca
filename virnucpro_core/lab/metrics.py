"""How well scores and calls tell the truth: figures, their intervals by group, and curves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from virnucpro_core.results.calls import BoolArray
from virnucpro_core.sequences.windows import Int64Array

Float64Array = NDArray[np.float64]

RANKS = ("auc", "average_precision", "found_at_1", "found_at_5")
"""By the order of the scores: the last two are sensitivities at 1 % and 5 % false positives."""
CALLS = ("f1", "mcc", "sensitivity", "false_positives")
"""By the calls: the last one is the share of negatives that are called."""
CALIBRATION = ("brier", "calibration_error")
"""By the probabilities, of what has one."""
FIGURES = (*RANKS, *CALLS, *CALIBRATION)

REPLICATES = 500
"""Times that groups are drawn for an interval."""
_BINS = 10


def curve(
    truth: BoolArray, score: Float64Array, weight: Float64Array | None = None
) -> tuple[Float64Array, Float64Array]:
    """True and false positives at each threshold from above all scores down to the least one."""
    order = np.argsort(-score, kind="stable")
    falling = score[order]
    last = np.append(falling[1:] != falling[:-1], True)  # of those that share a score
    copies = np.ones(len(order)) if weight is None else weight[order]
    right, wrong = (np.cumsum(copies * of)[last] for of in (truth[order], ~truth[order]))
    return np.append(0, right), np.append(0, wrong)


@dataclass(frozen=True)
class Items:
    """What was scored; all arrays have one entry an item.

    score: -inf for none, which ranks last. call: as virus, never without a score; None where a
    tool says none. probability: NaN for none. group: those that share one are drawn together.
    """

    truth: BoolArray
    score: Float64Array
    call: BoolArray | None
    probability: Float64Array
    group: Int64Array

    def __getitem__(self, part: BoolArray | Int64Array) -> Items:
        call = None if self.call is None else self.call[part]
        arrays = (self.truth[part], self.score[part])
        return Items(*arrays, call, self.probability[part], self.group[part])

    @property
    def scored(self) -> BoolArray:
        return self.score > -np.inf

    def reliability(self, weight: Float64Array | None = None) -> Float64Array:
        """Of tenths of the probabilities (10, 3): items, mean probability, share of positives."""
        known = np.isfinite(self.probability)
        probability, truth = self.probability[known], self.truth[known]
        copies = np.ones(len(truth)) if weight is None else weight[known]
        tenth = np.minimum((probability * _BINS).astype(np.int64), _BINS - 1)
        number, total, positive = (
            np.bincount(tenth, copies * of, _BINS) for of in (1, probability, truth)
        )
        return np.stack([number, *(np.stack([total, positive]) / np.maximum(number, 1e-300))], 1)

    def figures(self, weight: Float64Array | None = None) -> Float64Array:
        """FIGURES, each item counted `weight` times; NaN is what cannot be said."""
        copies = np.ones(len(self.truth)) if weight is None else weight
        with np.errstate(invalid="ignore", divide="ignore"):
            right, wrong = curve(self.truth, self.score, copies)
            step = np.diff(right)
            auc = (np.diff(wrong) * (right[1:] + right[:-1])).sum() / 2 / right[-1] / wrong[-1]
            above = np.maximum(right + wrong, 1e-300)[1:]  # 0 where all weigh nothing
            precision = (step * right[1:] / above).sum() / right[-1]
            found = [
                right[np.searchsorted(wrong, share * wrong[-1] + 1e-9, "right") - 1] / right[-1]
                for share in (0.01, 0.05)
            ]
            calls = self._of_calls(copies)
            known = np.isfinite(self.probability)
            error = (self.probability - self.truth)[known] ** 2
            number, said, seen = self.reliability(copies).T
            brier = (copies[known] * error).sum() / copies[known].sum()
            calibration = (number * abs(said - seen)).sum() / number.sum()
        return np.array([auc, precision, *found, *calls, brier, calibration])

    def _of_calls(self, copies: Float64Array) -> Float64Array:
        if self.call is None:
            return np.full(len(CALLS), np.nan)
        tp, fp, fn, tn = (
            float(copies[(self.call == call) & (self.truth == truth)].sum())
            for call, truth in ((True, True), (True, False), (False, True), (False, False))
        )
        margins = np.sqrt([tp + fp, tp + fn, tn + fp, tn + fn]).prod()
        over = np.array([2 * tp + fp + fn, margins or 1, tp + fn, fp + tn])
        values: Float64Array = np.array([2 * tp, tp * tn - fp * fn, tp, fp]) / over
        return values

    def intervals(self, seed: int = 0) -> Float64Array:
        """Limits of 95 % for FIGURES, (2, figures): groups of each class are drawn anew.

        NaN where a class has fewer than two groups. The same groups give the same draws, so that
        tools are compared on the same ones.
        """
        pairs = np.stack([self.truth.astype(np.int64), self.group])
        classes, pair = np.unique(pairs, axis=1, return_inverse=True)
        sizes = [int((classes[0] == of).sum()) for of in (0, 1)]
        if min(sizes) < 2:
            return np.full((2, len(FIGURES)), np.nan)
        rng = np.random.default_rng(seed)
        drawn = np.hstack([rng.multinomial(n, np.full(n, 1 / n), REPLICATES) for n in sizes])
        order = np.argsort(-self.score)  # once: what is in order is sorted again at once
        ranked, pair = self[order], pair.ravel()[order]
        values = [ranked.figures(row[pair].astype(np.float64)) for row in drawn]
        limits: Float64Array = np.percentile(values, (2.5, 97.5), axis=0)
        return limits
