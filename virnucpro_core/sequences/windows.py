"""Where the windows of a contig lie, as the original's split_fasta_chunk cuts them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]


def window_counts(lengths: Int64Array, window: int) -> Int64Array:
    """Number of windows of each contig, ceil(L / w); none for an empty contig."""
    return -(-lengths // window)


def windows(lengths: Int64Array, window: int) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Lay windows of `window` bases over contigs of the given lengths.

    The r = n·w − L bases that n = ceil(L / w) windows have too many are shared out as overlaps:
    with q = floor(r / n), q + 1 for the first min(n − 1, r − q(n − 1)) steps, q for the rest. The
    last window takes what is left and can be short.

    Returns three int64 arrays, one entry a window in contig order: the index of its contig in
    `lengths`, its start and its end (0-based, half-open, on the contig's forward strand).
    """
    counts = window_counts(lengths, window)
    contig = np.repeat(np.arange(len(lengths)), counts)
    step = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    surplus = counts * window - lengths
    base = surplus // np.maximum(counts, 1)  # an empty contig has no window
    longer = surplus - base * (counts - 1)  # of more steps than there are, if need be
    start = step * (window - base[contig]) - np.minimum(step, longer[contig])
    return contig, start, np.minimum(start + window, lengths[contig])


def window_starts(length: int, window: int) -> Int64Array:
    """Starts of one contig's windows, 0-based; see `windows`."""
    return windows(np.array([length]), window)[1]
