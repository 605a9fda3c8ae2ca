"""How long embedding lasts where no GPU does it."""

from __future__ import annotations

import os
from pathlib import Path

from virnucpro_core.embedding.schedule import protein_tokens
from virnucpro_core.models.store import Model
from virnucpro_core.sequences.split import FLOPS

LONG = 3600
"""Seconds from which on a user is told beforehand."""

_CORES = 8
"""What `FLOPS["cpu"]` is the speed of."""


def in_words(seconds: float) -> str:
    """A length of time as one says it: 26 hours, 3 days."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def cpu_seconds(frames: Path, model: Model) -> float:
    """About how long the cores of this process take for a frame table.

    Two operations a token and parameter, which has two bytes in fp16: one a byte of the weights.
    """
    bytes_ = sum((model.folder / file).stat().st_size for file in model.encoder_weights)
    cores = len(os.sched_getaffinity(0))
    return float(protein_tokens(frames).sum()) * bytes_ / (FLOPS["cpu"] * cores / _CORES)


def cpu_warning(frames: Path, model: Model) -> str | None:
    """A sentence to warn with before a CPU works for long; None where it does not."""
    seconds = cpu_seconds(frames, model)
    if seconds < LONG:
        return None
    return f"the CPU does the work, and takes about {in_words(seconds)}"
