"""The encoders' operations between their GEMMs, and the one choice of how each is computed.

Plain torch (CPU, float32, training) does what the published code does, step by step. On a GPU in
half precision, without gradients, `kernels` does each in one pass over memory.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from virnucpro_core.models.precision import HALF


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def fused(x: Tensor) -> bool:
    """Whether `kernels` take this tensor; VIRNUCPRO_KERNELS=torch says no."""
    return (
        x.is_cuda
        and x.dtype in HALF
        and not torch.is_grad_enabled()
        and _has_triton()
        and os.environ.get("VIRNUCPRO_KERNELS") != "torch"
    )


def add_norm(x: Tensor, rows: Tensor, linear: nn.Linear, norm: nn.LayerNorm) -> Tensor:
    """norm(x + linear(rows)): (T, D). x is used up: where fused, the sum is made in its place."""
    if not fused(x):
        result: Tensor = norm(x + linear(rows))
        return result
    from virnucpro_core.models import kernels

    x.addmm_(rows, linear.weight.t())
    return kernels.layer_norm(x, linear.bias, (norm.weight, norm.bias), norm.eps)


def gated_gelu(x: Tensor) -> Tensor:
    """gelu(first half of each row) · second half, (T, 2·D) → (T, D), exact GELU."""
    if fused(x):
        from virnucpro_core.models import kernels

        return kernels.gated_gelu(x)
    gate, value = x.chunk(2, dim=-1)
    return F.gelu(gate) * value


def segment_mean(rows: Tensor, begin: Tensor, count: Tensor) -> Tensor:
    """Mean of the rows [begin, begin + count) of each segment: (T, D) → float32 (B, D).

    begin, count: int (B), segments in order and apart. A segment is added up in float32 in one
    fixed order, so that the mean is the same at every run; that of an empty one is 0.
    """
    if fused(rows):
        from virnucpro_core.models import kernels

        return kernels.segment_mean(rows, begin, count)
    edges = torch.stack((begin, begin + count), 1).flatten().long()
    zero = edges.new_zeros(1)
    # every second run is a gap between segments
    runs = torch.cat((zero, edges, zero + len(rows))).diff()
    means = torch.segment_reduce(
        rows.float(), "mean", lengths=runs, axis=0, unsafe=True, initial=0.0
    )
    return means[1::2]
