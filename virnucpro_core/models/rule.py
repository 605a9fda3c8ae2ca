"""A model's own rule for contigs, of its model.json: windows' log-odds → one calibrated score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

PRIOR = 0.5
"""The share of viruses for which a rule's score is a probability."""

FEATURES = ("frames", "runs", "frames_log", "runs_log", "share", "log", "one")
"""Of a contig with n windows that were read: the log-odds of those with frames, added up and
divided by n; of those read by their longest run, likewise; both times log n; the share with
frames; log n; 1."""


@dataclass(frozen=True)
class ContigRule:
    """Log-odds of a contig, linear in FEATURES, fitted where half of the contigs are viral.

    weights: of the features. call_at: the least probability of a contig to be called virus.
    """

    weights: tuple[float, ...]
    call_at: float

    @classmethod
    def read(cls, value: Any) -> Self | None:
        """From what a model.json has; None when that is no rule."""
        if not isinstance(value, dict) or value.keys() != {"weights", "call_at"}:
            return None
        numbers, call_at = value["weights"], value["call_at"]
        fits = (
            isinstance(numbers, dict)
            and tuple(numbers) == FEATURES
            and all(type(x) in (int, float) and math.isfinite(x) for x in numbers.values())
            and type(call_at) is float
            and 0 < call_at < 1
        )
        return cls(tuple(map(float, numbers.values())), call_at) if fits else None

    def record(self) -> dict[str, Any]:
        """What `read` takes."""
        return {
            "weights": dict(zip(FEATURES, self.weights, strict=True)),
            "call_at": self.call_at,
        }

    def windows(self, odds: Float64Array, framed: NDArray[np.bool_]) -> Float64Array:
        """Log-odds (N) of windows as if each were a contig: framed is whether it has frames."""
        weight = dict(zip(FEATURES, self.weights, strict=True))
        frames = weight["frames"] * odds + weight["share"] + weight["one"]
        result: Float64Array = np.where(framed, frames, weight["runs"] * odds + weight["one"])
        return result

    def probability(self, features: Float64Array) -> Float64Array:
        """Of contigs, float64 (N), from their `features`."""
        odds = features @ np.array(self.weights)
        result: Float64Array = 1 / (1 + np.exp(np.minimum(-odds, 700)))
        return result


def features(
    contig: NDArray[np.int64], odds: Float64Array, framed: NDArray[np.bool_], number: int
) -> Float64Array:
    """FEATURES of so many contigs, (N, 7), from the windows that were read.

    contig: the index of each window's, odds: its log-odds, framed: whether it has frames.
    """

    def mean(which: NDArray[np.bool_], value: Float64Array) -> Float64Array:
        total = np.bincount(contig[which], value[which], number)
        result: Float64Array = total / np.maximum(read, 1)
        return result

    read = np.bincount(contig, minlength=number)
    log = np.log(np.maximum(read, 1))
    frames, runs = mean(framed, odds), mean(~framed, odds)
    share = mean(framed, np.ones(len(contig)))
    return np.column_stack([frames, runs, frames * log, runs * log, share, log, np.ones(number)])
