"""`virnucpro validate`: what a precision changes in embeddings and calls.

A validation that was passed is kept beside the model's weights, see `models.gate`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.linalg import norm
from numpy.typing import NDArray

from virnucpro_core.embedding.encoders import FrameEncoder
from virnucpro_core.errors import InputError, VirNucProError
from virnucpro_core.files import written_aside
from virnucpro_core.lab.machine import machine
from virnucpro_core.models.classifier import load_classifier
from virnucpro_core.models.gate import BARS, LEAST_FRAMES, STORED, good, passed, validations
from virnucpro_core.models.precision import check_precision
from virnucpro_core.models.store import SHIPPED, Model
from virnucpro_core.parquet import frame_batches, frame_meta
from virnucpro_core.results.calls import frame_is_virus

logger = logging.getLogger("virnucpro.validate")

REFERENCE = "fp32"
"""Only validations against this one are kept."""
FLIPS_SHOWN = 5

Halves = dict[str, NDArray[np.float32]]
"""Embeddings (N, dim) by encoder."""


@dataclass(frozen=True)
class Validation:
    """Figures of each encoder, and the frames whose call flipped, largest margin first.

    A margin is how far the reference's virus score was from a tie.
    """

    model: str
    precision: str
    against: str
    frames: int
    encoders: dict[str, dict[str, float]]
    agreement: float
    flips: list[dict[str, Any]]
    bars: dict[str, float]
    weights: dict[str, str]
    machine: dict[str, str]
    date: str

    @property
    def misses(self) -> list[str]:
        """What is below its bar; nothing, when the validation is passed."""
        reached = [("agreement of calls", self.agreement, self.bars["agreement"])]
        for name, figures in self.encoders.items():
            reached.append(
                (f"least cosine of {name}", figures["least_cosine"], self.bars["cosine"])
            )
        return [f"{name} {value:.6f} < {bar:g}" for name, value, bar in reached if value < bar]

    def __str__(self) -> str:
        lines = [f"{self.model} in {self.precision} against {self.against}, {self.frames} frames"]
        for name, figures in self.encoders.items():
            said = (f"{key.replace('_', ' ')} {value:.6f}" for key, value in figures.items())
            lines.append(f"{name}: {', '.join(said)}")
        lines.append(f"calls: {self.agreement:.4%} agree, {len(self.flips)} flipped")
        lines += [
            "{frame_id}: virus score {expected:.4f} became {found:.4f}, margin {margin:.4f}".format(
                **flip
            )
            for flip in self.flips[:FLIPS_SHOWN]
        ]
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """What is kept, and what --json writes."""
        return {"passed": not self.misses, **asdict(self)}


def sample_frames(frames: Path, count: int) -> pa.Table:
    """`count` frames (all, if there are fewer), evenly spread over lengths and, within, contigs."""
    proteins = (batch["protein"] for batch in frame_batches(frames, ["protein"]))
    lengths = np.concatenate([pc.binary_length(protein) for protein in proteins])
    # frames of one length stay in the table's order, which is that of the contigs
    order = np.argsort(lengths, kind="stable")
    chosen = np.unique(order[np.linspace(0, len(order) - 1, min(count, len(order))).astype(int)])
    parts, first = [], 0
    for batch in frame_batches(frames, ["frame_id", "nucleotide", "protein"]):
        inside = chosen[(chosen >= first) & (chosen < first + batch.num_rows)] - first
        parts.append(batch.take(pa.array(inside)))
        first += batch.num_rows
    return pa.Table.from_batches(parts)


def _embed(model: Model, texts: pa.Table, precision: str, device: torch.device) -> Halves:
    encoder = FrameEncoder(model, device, precision)
    columns = (texts[name].to_pylist() for name in ("nucleotide", "protein"))
    whole = encoder.embed_frames(*columns)
    halves = np.split(whole, [encoder.nucleotide.dim], axis=1)
    return dict(zip(("DNABERT-S", "ESM-2"), halves, strict=True))


def _figures(found: NDArray[np.float32], expected: NDArray[np.float32]) -> dict[str, float]:
    a, b = found.astype(np.float64), expected.astype(np.float64)
    cosine = np.einsum("nd,nd->n", a, b) / (norm(a, axis=1) * norm(b, axis=1)).clip(1e-300)
    return {
        "mean_cosine": float(cosine.mean()),
        "least_cosine": float(cosine.min()),
        "largest_difference": float(np.abs(a - b).max()),
        "relative_difference": float(norm(a - b) / norm(b)),
    }


def keep(model: Model, precision: str, record: Mapping[str, Any]) -> None:
    """Store a validation's record, if it opens the gate or closes it again.

    Good figures of too few frames do neither. Where the folder is not to be written, a warning says
    what to do instead.
    """
    fine, frames = good(record), record["frames"]
    if fine and frames < LEAST_FRAMES:
        logger.warning(
            "%d frames are too few to go by, so this validation is not kept; give a table of at "
            "least %d.",
            frames,
            LEAST_FRAMES,
        )
        return
    if not fine and not passed(model, precision):
        return
    path = model.folder / STORED
    why = "the folder of the package" if SHIPPED in path.resolve().parents else ""
    try:
        if not why:
            with written_aside(path) as aside:
                stored = {**validations(model), precision: record}
                aside.write_text(json.dumps(stored, indent=2) + "\n")
    except (OSError, VirNucProError) as error:
        why = getattr(error, "strerror", None) or str(error)
    if why:
        logger.warning(
            "%s: cannot be written (%s), so this validation is not kept; copy the model to a "
            "folder of yours and name that with --models-dir.",
            path,
            why,
        )


def validate(
    frames: Path,
    model: Model,
    precision: str,
    against: str = REFERENCE,
    *,
    device: torch.device,
    sample: int = 1000,
    min_agreement: float = BARS["agreement"],
    min_cosine: float = BARS["cosine"],
) -> Validation:
    """Embed the same sample of frames in two precisions; compare embeddings and frames' calls.

    The outcome is kept beside the weights when it is against fp32, on enough frames, and its
    figures reach the default bars, or undo one kept (see `models.gate`).

    Raises InputError for a table without frames or of another window, and for a precision that the
    device does not have; VirNucProError for values that are not finite.
    """
    meta = frame_meta(frames)
    if meta.window != model.window or not meta.rows:
        raise InputError(
            f"{frames}: has {meta.rows} frames of windows of {meta.window} bases; "
            f"{model.name} needs some, of windows of {model.window}."
        )
    for name in (precision, against):
        check_precision(name, device)
    texts = sample_frames(frames, sample)
    logger.info("embedding %d of %d frames in %s and %s", len(texts), meta.rows, against, precision)
    expected, found = (_embed(model, texts, name, device) for name in (against, precision))
    classifier = load_classifier(model.classifier)
    with torch.inference_mode():
        before, after = (
            classifier(torch.from_numpy(np.hstack(list(values.values())))).softmax(1).numpy()
            for values in (expected, found)
        )
    flips = [
        {
            "frame_id": texts["frame_id"][row].as_py(),
            "expected": float(before[row, 1]),
            "found": float(after[row, 1]),
            "margin": abs(float(before[row, 1]) - 0.5),
        }
        for row in np.flatnonzero(frame_is_virus(before) != frame_is_virus(after)).tolist()
    ]
    outcome = Validation(
        model=model.name,
        precision=precision,
        against=against,
        frames=len(texts),
        encoders={name: _figures(found[name], expected[name]) for name in expected},
        agreement=(len(texts) - len(flips)) / len(texts),
        flips=sorted(flips, key=lambda flip: -flip["margin"]),
        bars={"agreement": min_agreement, "cosine": min_cosine},
        weights=model.weights,
        machine=machine(device),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if against == REFERENCE:
        keep(model, precision, outcome.record())
    return outcome
