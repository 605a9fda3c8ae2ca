"""How well a model tells viruses from the rest, on sequences whose source is known."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from virnucpro_core.errors import InputError
from virnucpro_core.models.classifier import MLPClassifier, load_classifier
from virnucpro_core.models.dnabert_s import load_dnabert_s
from virnucpro_core.models.encoder import Encoder
from virnucpro_core.models.esm2 import load_esm2
from virnucpro_core.models.store import Model
from virnucpro_core.results.calls import MIN_VIRAL_FRACTION, BoolArray, Float32Array, WindowCalls
from virnucpro_core.sequences.fasta import Contig, read_fasta
from virnucpro_core.sequences.frames import stop_free_frames

PARTS = {"test": 0.2, "validation": 0.1, "training": 0.7}
"""Shares of the accessions; the test part is for the last figures alone, never for a choice."""

Float64Array = NDArray[np.float64]


def accession(contig_id: str) -> str:
    """What a fragment was cut from: the id up to the first `#`, without a version number."""
    return re.sub(r"\.\d+$", "", contig_id.split("#", 1)[0])


def part_of(contig_id: str) -> str:
    """The part that a contig belongs to, by a hash of its accession: the same in every run."""
    digest = hashlib.sha256(accession(contig_id).encode()).digest()
    at = int.from_bytes(digest[:8], "big") / 2**64
    for part, share in PARTS.items():
        at -= share
        if at < 0:
            return part
    return "training"


@dataclass(frozen=True)
class Labelled:
    """Contigs, and which of them (by id) are viral; all others are not."""

    contigs: list[Contig]
    viral: frozenset[str]

    @classmethod
    def read(cls, virus: Sequence[Path], other: Sequence[Path]) -> Labelled:
        """From FASTA files; InputError as `read_fasta`, also for an id that is in both."""
        viral, others = list(read_fasta(virus)), list(read_fasta(other))
        ids = frozenset(contig.id for contig in viral)
        if both := [contig.id for contig in others if contig.id in ids]:
            raise InputError(f"contig {both[0]!r} is among virus and other; take it out of one.")
        return cls(viral + others, ids)

    def part(self, name: str) -> Labelled:
        """The contigs whose accessions belong to one of `PARTS`."""
        return Labelled([c for c in self.contigs if part_of(c.id) == name], self.viral)

    def is_viral(self, ids: Iterable[str]) -> BoolArray:
        """The truth of contig ids: bool (N)."""
        return np.array([name in self.viral for name in ids], np.bool_)

    @property
    def truth(self) -> BoolArray:
        """The truth of the contigs: bool (contigs)."""
        return self.is_viral(contig.id for contig in self.contigs)


def frames_of(sample: Labelled, window: int) -> dict[str, list[Any]]:
    """Columns of the sample's stop-free frames, see `schema.FRAMES`."""
    columns: dict[str, list[Any]] = stop_free_frames(sample.contigs, window).to_pydict()
    return columns


def usable(sample: Labelled, name: str | None, window: int) -> Labelled:
    """A part, or with None all, of a sample; InputError when one of the classes has no frame."""
    part = sample.part(name) if name else sample
    where = f"the {name} part, {PARTS[name]:.0%} of the accessions," if name else "the input"
    for viral, kind in ((True, "viral"), (False, "other")):
        some = Labelled([c for c in part.contigs if (c.id in part.viral) == viral], part.viral)
        if not frames_of(some, window)["contig"]:
            raise InputError(
                f"{where} has no stop-free frame of {kind} contigs; give sequences of more "
                "accessions."
            )
    return part


@torch.inference_mode()
def frame_scores(
    nucleotide: Encoder,
    protein: Encoder,
    classifier: MLPClassifier,
    frames: Mapping[str, list[Any]],
) -> Float32Array:
    """Scores of frames, float32 (N, 2): of other and of virus, adding up to 1."""
    embeddings = np.hstack(
        [nucleotide.embed(frames["nucleotide"]), protein.embed(frames["protein"])]
    )
    device = classifier.hidden_layer.weight.device
    scores: Float32Array = (
        classifier(torch.from_numpy(embeddings).to(device)).softmax(1).cpu().numpy()
    )
    return scores


class Scored(NamedTuple):
    """Windows with the calls' own scores, and the mean virus score of each one's frames."""

    calls: WindowCalls
    mean: Float64Array


def score_windows(
    sample: Labelled, window: int, frames: Mapping[str, list[Any]], scores: Float32Array
) -> Scored:
    """Bring scores of frames, float32 (N, 2), to the windows of the sample's contigs."""
    calls = WindowCalls.of(np.array([len(c.sequence) for c in sample.contigs], np.int64), window)
    index = {contig.id: i for i, contig in enumerate(sample.contigs)}
    contig = np.array([index[name] for name in frames["contig"]], np.int64)
    number = np.array(frames["window"], np.int64)
    calls.add(contig, number, scores)
    at = calls.first[contig] + number - 1
    total = np.bincount(at, weights=scores[:, 1], minlength=len(calls.contig))
    return Scored(calls, total / np.maximum(calls.frames, 1))


def roc_auc(truth: BoolArray, score: NDArray[np.floating[Any]]) -> float:
    """Chance that a positive scores above a negative, ties counted half; NaN for lack of either."""
    _, value, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[value]
    positive = int(truth.sum())
    pairs = positive * (len(truth) - positive)
    return float((rank[truth].sum() - positive * (positive + 1) / 2) / pairs) if pairs else np.nan


def _quality(
    truth: BoolArray, score: NDArray[np.floating[Any]], call: BoolArray
) -> dict[str, float]:
    return {
        "number": len(truth),
        "viral": int(truth.sum()),
        "auc": round(roc_auc(truth, score), 4),
        "accuracy": round(float((call == truth).mean()), 4),
        "sensitivity": round(float(call[truth].mean()), 4),
        "specificity": round(float((~call[~truth]).mean()), 4),
    }


def figures(sample: Labelled, scored: Scored) -> dict[str, Any]:
    """How good scores and calls are, of windows (by highest virus score) and contigs (by mean).

    What has no frame is left out, and counted.
    """
    calls, truth = scored.calls, sample.truth
    called = calls.called
    windows = truth[calls.contig[called]]
    with_frame = np.bincount(calls.contig[called], minlength=len(truth))
    viral = np.bincount(calls.contig[calls.is_virus], minlength=len(truth))
    best = calls.score_virus[called].astype(np.float64)
    total = np.bincount(calls.contig[called], weights=best, minlength=len(truth))
    some = with_frame > 0
    fraction = viral[some] / with_frame[some]
    return {
        "frames": int(calls.frames.sum()),
        "windows": {
            **_quality(windows, calls.score_virus[called], calls.is_virus[called]),
            "auc_of_mean_score": round(roc_auc(windows, scored.mean[called]), 4),
            "without_frames": int((~called).sum()),
        },
        "contigs": {
            **_quality(truth[some], total[some] / with_frame[some], fraction >= MIN_VIRAL_FRACTION),
            "without_frames": int((~some).sum()),
        },
    }


def balance(sample: Labelled, scored: Scored) -> float:
    """What to add to the virus logit so that as many viral windows as others are called right.

    A window is viral when its highest virus score reaches its highest other score; in log-odds,
    when the middle between the greatest and the least of its frames is 0 or more.
    """

    def odds(score: Tensor) -> Tensor:
        return torch.logit(score.double(), eps=1e-9)

    calls = scored.calls
    virus, other = (
        torch.from_numpy(s[calls.called]) for s in (calls.score_virus, calls.score_other)
    )
    middle = ((odds(virus) - odds(other)) / 2).numpy()
    truth = sample.truth[calls.contig[calls.called]]
    at = np.sort(middle)
    sensitivity = 1 - np.searchsorted(np.sort(middle[truth]), at) / truth.sum()
    specificity = np.searchsorted(np.sort(middle[~truth]), at) / (~truth).sum()
    return -float(at[np.argmin(np.abs(sensitivity - specificity))])


def evaluate(model: Model, sample: Labelled, device: str = "cpu") -> dict[str, Any]:
    """`figures` of a stored model on labelled contigs."""
    frames = frames_of(sample, model.window)
    scores = frame_scores(
        load_dnabert_s(model.nucleotide).to(device),
        load_esm2(model.protein).to(device),
        load_classifier(model.classifier).to(device),
        frames,
    )
    return figures(sample, score_windows(sample, model.window, frames, scores))
