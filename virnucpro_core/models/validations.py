"""Validations stored beside a model's weights, and the precisions that need one.

{"fp8": {"passed": true, "weights": {"esm2/model.safetensors": "<sha256>", …}, …}}
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from virnucpro_core.errors import InputError, VirNucProError
from virnucpro_core.files import blame_machine, written_aside
from virnucpro_core.models.precision import check_precision
from virnucpro_core.models.store import SHIPPED, Model

logger = logging.getLogger("virnucpro.models")

STORED = "validation.json"
NEEDED = ("fp8",)
"""Precisions in which a model runs only once it was validated."""

BARS = {"agreement": 0.999, "cosine": 0.999}
"""What the gate asks of a validation's figures: share of calls alike, least cosine of any frame."""

LEAST_FRAMES = 100
"""Of a validation that the gate goes by: fewer leave it open whether one call in thirty flips."""


def _records(model: Model) -> dict[str, Any]:
    path = model.folder / STORED
    try:
        records = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        blame_machine(error, path)
        return {}
    return records if isinstance(records, dict) else {}


def _good(record: Mapping[str, Any]) -> bool:
    """Whether a record's figures reach the bars of the gate, whatever bars it was made with."""
    try:
        cosines = [figures["least_cosine"] for figures in record["encoders"].values()]
        return (
            bool(cosines)
            and min(cosines) >= BARS["cosine"]
            and record["agreement"] >= BARS["agreement"]
        )
    except (KeyError, TypeError, AttributeError):
        return False


def passed(model: Model, precision: str) -> bool:
    """Whether the last validation kept of a model in a precision was passed, by its weights of now.

    The classifier's count as well: calls were compared through it.
    """
    record = _records(model).get(precision)
    return (
        isinstance(record, dict)
        and record.get("weights") == model.weights
        and isinstance(frames := record.get("frames"), int)
        and frames >= LEAST_FRAMES
        and _good(record)
    )


def keep(model: Model, precision: str, record: Mapping[str, Any]) -> None:
    """Store a validation's record, if it opens the gate or closes it again.

    Good figures of too few frames do neither. Where the folder is not to be written, a warning says
    what to do instead.
    """
    good, frames = _good(record), record["frames"]
    if good and frames < LEAST_FRAMES:
        logger.warning(
            "%d frames are too few to go by, so this validation is not kept; give a table of at "
            "least %d.",
            frames,
            LEAST_FRAMES,
        )
        return
    if not good and not passed(model, precision):
        return
    path = model.folder / STORED
    why = "the folder of the package" if SHIPPED in path.resolve().parents else ""
    try:
        if not why:
            with written_aside(path) as aside:
                records = {**_records(model), precision: record}
                aside.write_text(json.dumps(records, indent=2) + "\n")
    except (OSError, VirNucProError) as error:
        why = getattr(error, "strerror", None) or str(error)
    if why:
        logger.warning(
            "%s: cannot be written (%s), so this validation is not kept; copy the model to a "
            "folder of yours and name that with --models-dir.",
            path,
            why,
        )


def require(
    model: Model, precision: str, devices: Sequence[torch.device], *, force: bool = False
) -> None:
    """InputError unless all devices have the precision and, where needed, a validation was passed.

    force does without the validation.
    """
    for device in devices:
        check_precision(precision, device)
    if precision in NEEDED and not force and not passed(model, precision):
        raise InputError(
            f"{model.name} has no passed validation in {precision} for its weights; run "
            f"`virnucpro validate` with --precision {precision}, or give --force."
        )
