"""Validations stored beside a model's weights, and the precisions that need one.

{"fp8": {"passed": true, "weights": {"esm2/model.safetensors": "<sha256>", …}, …}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from virnucpro_core.errors import InputError, ModelError
from virnucpro_core.models.precision import check_precision
from virnucpro_core.models.store import Model
from virnucpro_core.reading import read_object

STORED = "validation.json"
NEEDED = ("fp8",)
"""Precisions in which a model runs only once it was validated."""

BARS = {"agreement": 0.999, "cosine": 0.999}
"""What the gate asks of a validation's figures: share of calls alike, least cosine of any frame."""

LEAST_FRAMES = 100
"""Of a validation that the gate goes by: fewer leave it open whether one call in thirty flips."""


def validations(model: Model) -> dict[str, Any]:
    """What is stored, by precision; nothing where there is none, or no JSON object."""
    try:
        return read_object(model.folder / STORED)
    except ModelError:
        return {}


def good(record: Mapping[str, Any]) -> bool:
    """Whether a record's figures reach the bars of the gate, whatever bars it was made with."""
    try:
        least = min(figures["least_cosine"] for figures in record["encoders"].values())
        return bool(least >= BARS["cosine"] and record["agreement"] >= BARS["agreement"])
    except (KeyError, TypeError, AttributeError, ValueError):  # the last where it has no encoder
        return False


def passed(model: Model, precision: str) -> bool:
    """Whether the last validation kept of a model in a precision was passed, by its weights of now.

    The classifier's count as well: calls were compared through it.
    """
    record = validations(model).get(precision)
    return (
        isinstance(record, dict)
        and record.get("weights") == model.weights
        and isinstance(frames := record.get("frames"), int)
        and frames >= LEAST_FRAMES
        and good(record)
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
