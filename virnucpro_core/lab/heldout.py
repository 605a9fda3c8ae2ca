"""How well a model tells viruses from the rest, on sequences whose source is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro_core.errors import InputError
from virnucpro_core.lab.corpus import LENGTHS, Corpus
from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.models.encoder import Encoder
from virnucpro_core.models.rule import FEATURES, ContigRule, Float64Array
from virnucpro_core.results.calls import BoolArray, Float32Array, WindowCalls
from virnucpro_core.results.criteria import MIN_VIRAL_FRACTION
from virnucpro_core.sequences.fasta import Contig, read_fasta
from virnucpro_core.sequences.frames import stop_free_frames


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
    def drawn(
        cls,
        corpus: Corpus,
        part: str,
        number: int,
        seed: int = 0,
        lengths: tuple[int, int] = LENGTHS,
    ) -> Labelled:
        """`Corpus.contigs` of a part."""
        contigs = list(corpus.contigs(part, number, seed, lengths))
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


def frames_of(sample: Labelled, window: int, *, runs: bool = False) -> dict[str, list[Any]]:
    """Columns of the sample's stop-free frames, see `stop_free_frames`."""
    columns: dict[str, list[Any]] = stop_free_frames(sample.contigs, window, runs=runs).to_pydict()
    return columns


def usable_frames(
    sample: Labelled, window: int, where: str, *, runs: bool = True
) -> dict[str, list[Any]]:
    """`frames_of` a sample; InputError when one of the classes has none."""
    frames = frames_of(sample, window, runs=runs)
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


def call_windows(
    sample: Labelled, window: int, frames: Mapping[str, list[Any]], scores: Float32Array
) -> WindowCalls:
    """Bring scores of frames, float32 (N, 2), to the windows of the sample's contigs."""
    calls = WindowCalls.of(np.array([len(c.sequence) for c in sample.contigs], np.int64), window)
    index = {contig.id: i for i, contig in enumerate(sample.contigs)}
    contig = np.array([index[name] for name in frames["contig"]], np.int64)
    runs = np.array([name.islower() for name in frames["frame"]], np.bool_)
    calls.add(contig, np.array(frames["window"], np.int64), scores, runs)
    return calls


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


def score_contigs(calls: WindowCalls, rule: ContigRule | None) -> tuple[Float64Array, BoolArray]:
    """Scores of contigs, −inf for one without any window that was read, and which are virus.

    By a rule the score is its probability; else it is the mean log-odds of the windows, and a
    contig is virus when half of them are.
    """
    at, number = calls.called, len(calls.first) - 1
    read = np.bincount(calls.contig[at], minlength=number)
    if rule is not None:
        score = rule.probability(calls.features())
        call = score >= rule.call_at
    else:
        score = np.bincount(calls.contig[at], calls.odds[at], number) / np.maximum(read, 1)
        viral = np.bincount(calls.contig[calls.is_virus], minlength=number)
        call = viral >= MIN_VIRAL_FRACTION * read
    return np.where(read > 0, score, -np.inf), call & (read > 0)


@dataclass(frozen=True)
class Look:
    """Contigs whose frames are known, to be scored again and again."""

    sample: Labelled
    window: int
    frames: Mapping[str, list[Any]]

    def calls(self, classifier: MLPClassifier, embeddings: Float32Array) -> WindowCalls:
        """Windows as a classifier scores them."""
        scores = frame_scores(classifier, embeddings)
        return call_windows(self.sample, self.window, self.frames, scores)

    def auc(self, classifier: MLPClassifier, embeddings: Float32Array) -> float:
        """ROC AUC of the contigs by the mean of their windows."""
        mean, _ = score_contigs(self.calls(classifier, embeddings), None)
        return roc_auc(self.sample.truth, mean)


BINS = ((500, 999), (1000, 2999), (3000, 10_000))
"""Lengths of contigs, from and to, that are measured apart too."""


def figures(sample: Labelled, calls: WindowCalls, rule: ContigRule | None = None) -> dict[str, Any]:
    """How good scores and calls are, of windows and contigs, by length and by kind.

    What was not read is left out of windows; such a contig ranks last, and is called other.
    `called` are the shares of all contigs of a kind that are called virus; `calibration`, by a
    rule alone, has the Brier score and the expected calibration error.
    """
    truth, called = sample.truth, calls.called
    score, call = score_contigs(calls, rule)
    length = np.array([len(contig.sequence) for contig in sample.contigs])
    kind = np.array([contig.description for contig in sample.contigs])
    bins = {f"{low}-{high}": (length >= low) & (length <= high) for low, high in BINS}
    framed = np.bincount(calls.contig, calls.frames, len(truth)) > 0
    parts = {**bins, "without_frames": ~framed}
    both = {name: at for name, at in parts.items() if len(set(truth[at].tolist())) == 2}
    contigs: dict[str, Any] = {
        **_quality(truth, score, call),
        "not_read": int(np.isneginf(score).sum()),
        "found_at_5_percent_false": round(found_at(truth, score, 0.05), 4),
        "auc_of": {name: round(roc_auc(truth[at], score[at]), 4) for name, at in both.items()},
        "called": {
            name: round(float(call[kind == name].mean()), 4) for name in np.unique(kind).tolist()
        },
    }
    if rule is not None:
        contigs["calibration"] = {
            name: calibration(truth[at], np.maximum(score[at], 0))
            for name, at in {"all": np.ones(len(truth), np.bool_), **both}.items()
        }
    return {
        "frames": int(calls.frames.sum()),
        "windows": {
            **_quality(truth[calls.contig[called]], calls.odds[called], calls.is_virus[called]),
            "without_frames": int((calls.frames == 0).sum()),
        },
        "contigs": contigs,
    }


def calibration(truth: BoolArray, probability: Float64Array) -> dict[str, float]:
    """Brier score, and the mean gap of probability and truth in ten bins, weighed by number."""
    at = np.minimum((probability * 10).astype(np.int64), 9)
    gap = np.abs(np.bincount(at, probability - truth, 10)).sum() / len(truth)
    return {
        "brier": round(float(((probability - truth) ** 2).mean()), 4),
        "error": round(float(gap), 4),
    }


def found_at(truth: BoolArray, score: Float64Array, false: float) -> float:
    """Share of positives above the score that no more than `false` of the negatives exceed."""
    negatives = np.sort(score[~truth])[::-1]
    return float((score[truth] > negatives[int(false * len(negatives))]).mean())


def conservative(sample: Labelled, calls: WindowCalls, false: float) -> float:
    """What to add to the virus logit so that a share of the others' windows, `false`, is called."""
    others = calls.called & ~sample.truth[calls.contig]
    return -float(np.quantile(calls.odds[others], 1 - false))


def fit_rule(
    sample: Labelled,
    calls: WindowCalls,
    false: float,
    *more: tuple[Labelled, WindowCalls],
) -> ContigRule:
    """The rule that fits contigs best, by likelihood, those of `more` too.

    So large a share of the sample's others is called.
    """
    known = []
    for contigs, theirs in ((sample, calls), *more):
        read = np.bincount(theirs.contig[theirs.called], minlength=len(contigs.contigs)) > 0
        known.append((theirs.features()[read], contigs.truth[read].astype(np.float64)))
    x, y = (np.concatenate(parts) for parts in zip(*known, strict=True))
    weights = np.zeros(len(FEATURES))
    # a little shrinkage, so that there is a best one where all are told apart
    shrink = np.diag([1e-3 * len(y)] * (len(weights) - 1) + [1e-9])
    for _ in range(30):  # Newton's steps
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        slope = x.T @ (p - y) + shrink @ weights
        weights -= np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + shrink, slope)
    rule = ContigRule(tuple(weights.tolist()), 0.5)
    own, truth = known[0]
    call_at = float(np.quantile(rule.probability(own)[truth == 0], 1 - false))
    return replace(rule, call_at=min(max(call_at, 1e-6), 1 - 1e-6))
