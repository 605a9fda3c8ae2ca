"""Scores of frames → calls of windows, by the original's rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from virnucpro_core.models.rule import Float64Array, features
from virnucpro_core.sequences.windows import Int64Array, windows

LABELS = {"virus": "Virus", "other": "Other", "no_call": "No call"}
CALLS = tuple(LABELS)
REASONS = ("too_short", "ambiguous", "no_stop_free_frame", "little_evidence")

Float32Array = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


def frame_is_virus(scores: Float32Array) -> BoolArray:
    """Calls of frames from scores (N, 2) of (other, virus); a tie is none, as for torch.max."""
    return scores[:, 1] > scores[:, 0]


@dataclass
class WindowCalls:
    """Every window of a batch of contigs, in order; all arrays have one entry a window.

    `contig` is the index within the batch, `number` counts from 1, `start` and `end` are 0-based
    and half-open on the contig's forward strand; the scores are the highest of the window's
    frames, or those of its longest run, -inf where it was not read.
    """

    contig: Int64Array
    number: Int64Array
    start: Int64Array
    end: Int64Array
    frames: Int64Array
    score_other: Float32Array
    score_virus: Float32Array
    first: Int64Array
    """Index of each contig's first window, and the number of windows at the end."""

    @classmethod
    def of(cls, lengths: Int64Array, window: int) -> WindowCalls:
        """The windows of contigs of these lengths, without a frame so far."""
        contig, start, end = windows(lengths, window)
        first = np.searchsorted(contig, np.arange(len(lengths) + 1))
        other, virus = np.full((2, len(contig)), -np.inf, np.float32)
        number = np.arange(len(contig)) - first[contig] + 1
        frames = np.zeros(len(contig), np.int64)
        return cls(contig, number, start, end, frames, other, virus, first)

    def misplaced(self, contig: Int64Array, number: Int64Array) -> BoolArray:
        """Which (contig, window number) pairs name no window of the batch."""
        return (number < 1) | (number > self.first[contig + 1] - self.first[contig])

    def add(
        self, contig: Int64Array, number: Int64Array, scores: Float32Array, runs: BoolArray
    ) -> None:
        """Add frames, given the contig and window of each and its scores (N, 2).

        runs: which are no stop-free frames but longest runs, and so are not counted.
        """
        at = self.first[contig] + number - 1
        np.add.at(self.frames, at, ~runs)
        np.maximum.at(self.score_other, at, scores[:, 0])
        np.maximum.at(self.score_virus, at, scores[:, 1])

    @property
    def called(self) -> BoolArray:
        """Which have a score."""
        return self.score_virus > -np.inf

    @property
    def odds(self) -> Float64Array:
        """Virus scores in log-odds; of several frames, the middle of the greatest and the least.

        A window is viral when that is 0 or more.
        """
        virus, other = (
            np.clip(score.astype(np.float64), 1e-9, 1 - 1e-9)
            for score in (self.score_virus, self.score_other)
        )
        odds: Float64Array = (np.log(virus / (1 - virus)) - np.log(other / (1 - other))) / 2
        return odds

    def features(self) -> Float64Array:
        """`rule.FEATURES` of the batch's contigs."""
        at = self.called
        number = len(self.first) - 1
        return features(self.contig[at], self.odds[at], self.frames[at] > 0, number)

    @property
    def is_virus(self) -> BoolArray:
        """The original's rule, by which a tie is a virus."""
        return self.called & (self.score_virus >= self.score_other)

    def __getitem__(self, part: slice) -> WindowCalls:
        """A part of the windows; `first` stays that of all."""
        per_window = (field.name for field in fields(self) if field.name != "first")
        return replace(self, **{name: getattr(self, name)[part] for name in per_window})

    def ids(self, contigs: Sequence[str]) -> list[str]:
        """The original's names of the windows: contig, `_chunk_`, number."""
        pairs = zip(self.contig.tolist(), self.number.tolist(), strict=True)
        return [f"{contigs[contig]}_chunk_{number}" for contig, number in pairs]
