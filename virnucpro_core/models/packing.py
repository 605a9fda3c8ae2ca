"""Which sequences share a batch."""

from __future__ import annotations

import os

import numpy as np

from virnucpro_core.sequences.windows import Int64Array


def packing_enabled() -> bool:
    """Whether sequences are packed; VIRNUCPRO_DISABLE_PACKING=true runs them one at a time."""
    return os.environ.get("VIRNUCPRO_DISABLE_PACKING", "").lower() not in ("1", "true", "yes")


def plan(lengths: Int64Array, token_budget: int) -> list[Int64Array]:
    """Group sequences, longest first, into batches of at most `token_budget` tokens.

    lengths: tokens of each sequence, int64 (N). A sequence longer than the budget has a batch of
    its own. Sorted by length, so that neighbours in a batch are of like length; ties stay in input
    order, so a plan depends on its arguments alone.

    Returns the rows of each batch, int64; every row is in one of them, once.
    """
    order = np.argsort(-lengths, kind="stable")
    if not packing_enabled():
        return list(order[:, None])
    ends = np.cumsum(lengths[order])
    batches = []
    start = 0
    while start < len(order):
        before = ends[start] - lengths[order[start]]
        stop = max(start + 1, int(np.searchsorted(ends, before + token_budget, "right")))
        batches.append(order[start:stop])
        start = stop
    return batches
