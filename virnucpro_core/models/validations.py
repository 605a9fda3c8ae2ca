"""Validations stored beside a model's weights, and the precisions that need one.

{"fp8": {"passed": true, "weights": {"esm2/model.safetensors": "<sha256>", …}, …}}
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from virnucpro_core.errors import InputError
from virnucpro_core.files import blame_machine, written_aside
from virnucpro_core.models.precision import check_precision
from virnucpro_core.models.store import Model

logger = logging.getLogger("virnucpro.models")

STORED = "validation.json"
NEEDED = ("fp8",)
"""Precisions in which a model runs only once it was validated."""


def _records(model: Model) -> dict[str, Any]:
    path = model.folder / STORED
    try:
        records = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        blame_machine(error, path)
        return {}
    return records if isinstance(records, dict) else {}


def passed(model: Model, precision: str) -> bool:
    """Whether the last validation kept of a model in a precision was passed, by its weights of now.

    The classifier's count as well: calls were compared through it.
    """
    record = _records(model).get(precision)
    return (
        isinstance(record, dict)
        and record.get("passed") is True
        and record.get("weights") == model.weights
    )


def keep(model: Model, precision: str, record: Mapping[str, Any]) -> None:
    """Store a validation's record, if it is a passed one or undoes one that was.

    Where the folder cannot be written, a warning says what to do instead.
    """
    if not record["passed"] and not passed(model, precision):
        return
    path = model.folder / STORED
    try:
        with written_aside(path) as aside:
            aside.write_text(json.dumps({**_records(model), precision: record}, indent=2) + "\n")
    except OSError as error:
        logger.warning(
            "%s: cannot be written (%s), so this validation is not kept; copy the models to a "
            "folder of yours and name that with --models-dir.",
            path,
            error.strerror,
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
