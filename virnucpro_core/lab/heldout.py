"""How well a model tells viruses from the rest, on sequences whose source is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro_core.errors import InputError
from virnucpro_core.lab.corpus import Corpus
from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.models.encoder import Encoder
from virnucpro_core.results.calls import MIN_VIRAL_FRACTION, BoolArray, Float32Array, WindowCalls
from virnucpro_core.sequences.fasta import Contig, read_fasta
from virnucpro_core.sequences.frames import stop_free_frames

Float64Array = NDArray[np.float64]


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

    @classmethod
    def drawn(cls, corpus: Corpus, part: str, number: int, seed: int = 0) -> Labelled:
        """`Corpus.contigs` of a part."""
        contigs = list(corpus.contigs(part, number, seed))
        kinds = {name for name, viral in zip(corpus.kinds, corpus.viral, strict=True) if viral}
        return cls(contigs, frozenset(c.id for c in contigs if c.description in kinds))

    @classmethod
    def test_part(
        cls, virus: Sequence[Path], other: Sequence[Path], number: int = 2000, seed: int = 0
    ) -> Labelled:
        """The contigs that `train` tests on when it is given the same files and seed."""
        with TemporaryDirectory() as folder:
            return cls.drawn(
                Corpus.write(Path(folder) / "corpus", virus, other), "test", number, seed
            )

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


def usable_frames(sample: Labelled, window: int, where: str) -> dict[str, list[Any]]:
    """`frames_of` a sample; InputError when one of the classes has none."""
    frames = frames_of(sample, window)
    found = set(sample.is_viral(set(frames["contig"])).tolist())
    for viral, kind in ((True, "viral"), (False, "other")):
        if viral not in found:
            raise InputError(
                f"{where} has no stop-free frame of {kind} contigs; give sequences of more groups."
            )
    return frames


def frame_embeddings(
    nucleotide: Encoder, protein: Encoder, frames: Mapping[str, list[Any]]
) -> Float32Array:
    """What a classifier is given of frames, float32 (N, D)."""
    halves = [nucleotide.embed(frames["nucleotide"]), protein.embed(frames["protein"])]
    embeddings: Float32Array = np.hstack(halves)
    return embeddings


@torch.inference_mode()
def frame_scores(classifier: MLPClassifier, embeddings: Float32Array) -> Float32Array:
    """Scores of frames, float32 (N, 2): of other and of virus, adding up to 1."""
    device = classifier.hidden_layer.weight.device
    logits = classifier(torch.from_numpy(embeddings).to(device))
    scores: Float32Array = logits.softmax(1).cpu().numpy()
    return scores


class Scored(NamedTuple):
    """Windows with the calls' own scores, and of each window its virus score in log-odds.

    That is the middle between the greatest and the least of its frames: the window is viral when
    it is 0 or more.
    """

    calls: WindowCalls
    odds: Float64Array


def score_windows(
    sample: Labelled, window: int, frames: Mapping[str, list[Any]], scores: Float32Array
) -> Scored:
    """Bring scores of frames, float32 (N, 2), to the windows of the sample's contigs."""
    calls = WindowCalls.of(np.array([len(c.sequence) for c in sample.contigs], np.int64), window)
    index = {contig.id: i for i, contig in enumerate(sample.contigs)}
    contig = np.array([index[name] for name in frames["contig"]], np.int64)
    calls.add(contig, np.array(frames["window"], np.int64), scores)
    virus, other = (
        torch.logit(torch.from_numpy(score).double(), eps=1e-9).numpy()
        for score in (calls.score_virus, calls.score_other)
    )
    return Scored(calls, np.where(calls.called, (virus - other) / 2, np.nan))


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


class ContigScores(NamedTuple):
    """Of each contig: the mean log-odds of its windows, and those that half of them reach.

    Windows without a frame do not count; both are -inf for a contig without any.
    """

    mean: Float64Array
    half: Float64Array


def score_contigs(scored: Scored) -> ContigScores:
    """A contig is virus when half of its windows with frames are, so when `half` is 0 or more."""
    edges = scored.calls.first
    result = np.full((2, len(edges) - 1), -np.inf)
    for i, (first, last) in enumerate(pairwise(edges)):
        odds = np.sort(scored.odds[first:last][scored.calls.called[first:last]])
        if len(odds):
            needed = int(np.ceil(MIN_VIRAL_FRACTION * len(odds)))
            result[:, i] = odds.mean(), odds[len(odds) - needed]
    return ContigScores(*result)


@dataclass(frozen=True)
class Look:
    """Contigs whose frames are known, to be scored again and again."""

    sample: Labelled
    window: int
    frames: Mapping[str, list[Any]]

    def scored(self, classifier: MLPClassifier, embeddings: Float32Array) -> Scored:
        """Windows as a classifier scores them."""
        scores = frame_scores(classifier, embeddings)
        return score_windows(self.sample, self.window, self.frames, scores)

    def auc(self, classifier: MLPClassifier, embeddings: Float32Array) -> float:
        """ROC AUC of the contigs that have frames."""
        mean = score_contigs(self.scored(classifier, embeddings)).mean
        some = np.isfinite(mean)
        return roc_auc(self.sample.truth[some], mean[some])


BINS = ((500, 999), (1000, 2999), (3000, 10_000))
"""Lengths of contigs, from and to, that are measured apart too."""


def figures(sample: Labelled, scored: Scored) -> dict[str, Any]:
    """How good scores and calls are, of windows and contigs, by length and by kind.

    What has no frame is left out of windows and contigs, and counted; in `auc_of_all` such a
    contig ranks last. `called` are the shares of all contigs of a kind that are called virus.
    """
    calls, truth = scored.calls, sample.truth
    called = calls.called
    contigs = score_contigs(scored)
    some = np.isfinite(contigs.mean)
    length = np.array([len(contig.sequence) for contig in sample.contigs])
    kind = np.array([contig.description for contig in sample.contigs])
    within = [((length >= low) & (length <= high), f"{low}-{high}") for low, high in BINS]
    return {
        "frames": int(calls.frames.sum()),
        "windows": {
            **_quality(truth[calls.contig[called]], scored.odds[called], calls.is_virus[called]),
            "without_frames": int((~called).sum()),
        },
        "contigs": {
            **_quality(truth[some], contigs.mean[some], contigs.half[some] >= 0),
            "without_frames": int((~some).sum()),
            "auc_of_all": round(roc_auc(truth, contigs.mean), 4),
            "found_at_5_percent_false": round(found_at(truth, contigs.mean, 0.05), 4),
            "auc_by_length": {
                name: round(roc_auc(truth[at & some], contigs.mean[at & some]), 4)
                for at, name in within
                if len(set(truth[at & some].tolist())) == 2
            },
            "called": {
                name: round(float((contigs.half[kind == name] >= 0).mean()), 4)
                for name in np.unique(kind).tolist()
            },
        },
    }


def found_at(truth: BoolArray, score: Float64Array, false: float) -> float:
    """Share of positives above the score that no more than `false` of the negatives exceed."""
    negatives = np.sort(score[~truth])[::-1]
    return float((score[truth] > negatives[int(false * len(negatives))]).mean())


def conservative(sample: Labelled, scored: Scored, false: float) -> float:
    """What to add to the virus logit so that a share of the other contigs, `false`, is called.

    Those without a frame do not count.
    """
    half, truth = score_contigs(scored).half, sample.truth
    others = half[~truth & np.isfinite(half)]
    return -float(np.quantile(others, 1 - false))
