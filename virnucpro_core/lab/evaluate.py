"""`virnucpro evaluate`: a model, and other tools by their tables, on sequences of known source."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from virnucpro_core.embedding.devices import default_precision
from virnucpro_core.embedding.encoders import FrameEncoder
from virnucpro_core.errors import InputError
from virnucpro_core.files import blamed, made, written_aside
from virnucpro_core.lab.corpus import group_of, header_kind
from virnucpro_core.lab.curves import plot
from virnucpro_core.lab.heldout import (
    Labelled,
    call_windows,
    figures,
    frame_scores,
    score_contigs,
    usable_frames,
)
from virnucpro_core.lab.metrics import FIGURES, REPLICATES, Items, curve
from virnucpro_core.lab.othertool import Table
from virnucpro_core.models.classifier import load_classifier
from virnucpro_core.models.store import Model
from virnucpro_core.results.calls import BoolArray, WindowCalls
from virnucpro_core.sequences.windows import Int64Array

THRESHOLD = 0.5
"""A probability of another tool that is a call as virus."""

FILES = ("evaluation.tsv", "evaluation.json", "roc.svg", "precision_recall.svg", "reliability.svg")
ABOUT = ("tool", "level", "subset", "number", "groups", "viral", "scored")
SHOWN = ("auc", "average_precision", "found_at_5", "mcc", "sensitivity", "false_positives")


def windows_by(model: Model, sample: Labelled, device: torch.device) -> WindowCalls:
    """The windows as a model scores them, embedded as `predict` does; InputError without frames."""
    frames = usable_frames(sample, model.window, "the input", runs=model.rule is not None)
    encoder = FrameEncoder(model, device, default_precision(device))
    embeddings = encoder.embed_frames(frames["nucleotide"], frames["protein"])
    scores = frame_scores(load_classifier(model.classifier).to(device), embeddings)
    return call_windows(sample, model.window, frames, scores)


def evaluate(model: Model, sample: Labelled, device: str = "cpu") -> dict[str, Any]:
    """`figures` of a stored model on labelled contigs; InputError as `usable_frames`."""
    return figures(sample, windows_by(model, sample, torch.device(device)), model.rule)


@dataclass(frozen=True)
class Level:
    """What one tool scored: `items`, and of each the index of its contig."""

    tool: str
    level: str
    items: Items
    contig: Int64Array


def _groups(sample: Labelled) -> Int64Array:
    names = [group_of(contig.id) for contig in sample.contigs]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def model_levels(model: Model, sample: Labelled, calls: WindowCalls) -> list[Level]:
    """A model's contigs and windows, with its own calls.

    Contigs' probabilities are its rule's, or the logistic of their mean log-odds, as windows'.
    """
    score, call = score_contigs(calls, model.rule)
    odds = np.where(calls.called, calls.odds, -np.inf)
    every = np.arange(len(sample.contigs))
    levels = []
    for level, contig, scores, called, sure in (
        ("contig", every, score, call, model.rule is not None),
        ("window", calls.contig, odds, calls.is_virus, False),
    ):
        known = scores > -np.inf
        chance = scores if sure else torch.from_numpy(scores).sigmoid().numpy()
        probability = np.where(known, chance, np.nan)
        truth, group = sample.truth[contig], _groups(sample)[contig]
        levels.append(
            Level(model.name, level, Items(truth, scores, called, probability, group), contig)
        )
    return levels


def table_level(sample: Labelled, table: Table) -> Level:
    """Another tool's contigs: its scores are probabilities where all are within 0 and 1.

    Else there are no calls. InputError when the table has none of the contigs.
    """
    score = np.array([table.scores.get(c.id, np.nan) for c in sample.contigs], np.float64)
    if not np.isfinite(score).any():
        raise InputError(
            f"--table {table.tool}: has a score of none of the contigs; give the table that the "
            "tool made of these."
        )
    known = ~np.isnan(score)
    sure = bool(((score[known] >= 0) & (score[known] <= 1)).all())
    items = Items(
        sample.truth,
        np.where(known, score, -np.inf),
        score >= THRESHOLD if sure else None,
        score if sure else np.full(len(score), np.nan),
        _groups(sample),
    )
    return Level(table.tool, "contig", items, np.arange(len(score)))


def bins_of(text: str) -> list[int]:
    """Lengths at which bins begin; InputError unless they rise."""
    words = text.split(",")
    edges = [int(word) for word in words if word.strip().isdecimal()]
    if len(edges) < len(words) or edges[0] < 1 or any(b <= a for a, b in pairwise(edges)):
        raise InputError(f"--bins {text}: give rising lengths in bases, such as 300,500,1000,3000.")
    return edges


def _subsets(sample: Labelled, one: Level, bins: Sequence[int]) -> Iterator[tuple[str, BoolArray]]:
    """Names and masks: all; scored ones; by length; each kind with all of the other class."""
    yield "all", np.ones(len(one.contig), np.bool_)
    if not one.items.scored.all():
        yield "scored", one.items.scored
    length = np.array([len(contig.sequence) for contig in sample.contigs])[one.contig]
    for low, high in pairwise([1, *(edge for edge in bins if edge > 1), 0]):
        name = f"length {low}-{high - 1}" if high else f"length {low}-"
        yield name, (length >= low) & ((length < high) | (not high))
    truth = sample.truth
    kinds = [
        (bool(viral), header_kind(contig.description, bool(viral)))
        for contig, viral in zip(sample.contigs, truth, strict=True)
    ]
    for viral, kind in sorted(set(kinds), key=lambda pair: (not pair[0], pair[1])):
        of_kind = np.array([pair == (viral, kind) for pair in kinds]) | (truth != viral)
        yield f"kind {kind}", of_kind[one.contig]


def rows(sample: Labelled, levels: Sequence[Level], bins: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each tool, level and subset of some items: ABOUT, FIGURES and their intervals."""
    table = []
    for one in levels:
        for subset, mask in _subsets(sample, one, bins):
            items = one.items[mask]
            if not mask.any():
                continue
            groups, viral = len(np.unique(items.group)), int(items.truth.sum())
            about = (one.tool, one.level, subset, len(items.truth), groups, viral)
            row: dict[str, Any] = dict(zip(ABOUT, (*about, int(items.scored.sum())), strict=True))
            low, high = items.intervals()
            for name, *values in zip(FIGURES, items.figures(), low, high, strict=True):
                for end, value in zip(("", "_low", "_high"), values, strict=True):
                    row[name + end] = round(float(value), 4) if np.isfinite(value) else None
            table.append(row)
    return table


def pictures(levels: Sequence[Level]) -> dict[str, str]:
    """SVGs by file name: of contigs and windows as a whole, each at its own share of viruses."""
    roc, precision, reliability = {}, {}, {}
    for one in levels:
        items, name = one.items, f"{one.tool}, {one.level}s"
        right, wrong = curve(items.truth, items.score)
        roc[name] = np.stack([wrong / wrong[-1], right / right[-1]], 1)
        share = right[1:] / (right[1:] + wrong[1:])
        precision[name] = np.stack([right[1:] / right[-1], share], 1)
        number, said, seen = items.reliability().T
        if number.any():
            reliability[name] = np.stack([said, seen, number / number.sum()], 1)[number > 0]
    viral = float(levels[0].items.truth.mean())
    of = f"{viral:.0%} of the contigs are viral"
    return {
        "roc.svg": plot("ROC", ("false positives", "sensitivity"), roc, (0, 1)),
        "precision_recall.svg": plot(
            f"Precision and recall; {of}", ("recall", "precision"), precision, (viral, viral)
        ),
        "reliability.svg": plot(
            f"Reliability; {of}", ("probability", "viral"), reliability, (0, 1)
        ),
    }


def shown(table: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines for a person; `table` begins with a model's contigs, all of them."""
    number, groups, viral = (table[0][name] for name in ("number", "groups", "viral"))
    yield (
        f"{number} contigs of {groups} groups, {viral / number:.1%} viral; what has no score ranks "
        f"last; intervals of 95 % by {REPLICATES} draws of the groups"
    )
    lines = [[*ABOUT, *SHOWN]]
    for row in table:
        cells = [str(row[name]) for name in ABOUT]
        for name in SHOWN:
            value, low, high = (row[name + end] for end in ("", "_low", "_high"))
            limits = "" if low is None else f" ({low:.2f}–{high:.2f})"
            cells.append("" if value is None else f"{value:.3f}{limits}")
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(map(str.ljust, line, widths)).rstrip()


def measure(
    model: Model,
    sample: Labelled,
    tables: Sequence[Table],
    bins: Sequence[int],
    device: torch.device,
    out: Path | None = None,
) -> list[dict[str, Any]]:
    """`rows` of a model and of other tools; with `out`, table and pictures in that folder."""
    with ExitStack() as stack:
        files: dict[Path, Path] = {}
        if out is not None:
            stack.enter_context(made(out))
            for path in (out / name for name in FILES):
                files[path] = stack.enter_context(written_aside(path))
        others = [table_level(sample, table) for table in tables]
        levels = [*model_levels(model, sample, windows_by(model, sample, device)), *others]
        table = rows(sample, levels, bins)
        about = {
            "model": model.name,
            "weights": model.weights,
            "prevalence": round(float(sample.truth.mean()), 4),
            "replicates": REPLICATES,
            "rows": table,
        }
        columns = list(table[0])
        lines = [[*columns], *([row[name] for name in columns] for row in table)]
        texts = {
            "evaluation.json": json.dumps(about, indent=2) + "\n",
            "evaluation.tsv": "".join(
                "\t".join("" if cell is None else str(cell) for cell in line) + "\n"
                for line in lines
            ),
            **pictures(levels),
        }
        for path, aside in files.items():
            with blamed(path):
                aside.write_text(texts[path.name], encoding="utf-8")
    return table
