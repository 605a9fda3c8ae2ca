"""The encoders' operations around their GEMMs, and the one choice of how each is computed.

Plain torch (float32 on a GPU, training) does what the published code does, step by step. On a GPU
in half precision, without gradients, `kernels` does each in one pass over memory. On a CPU without
gradients oneDNN multiplies, with GELU or the residual's sum in its epilogue.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Any

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


@cache
def _has_onednn() -> bool:
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")  # that torch's compiler calls


def _by_onednn(x: Tensor) -> bool:
    """Whether oneDNN multiplies: the BLAS of torch does not use AVX-512 on AMD's processors."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and not torch.is_grad_enabled()
        and _has_onednn()
        and os.environ.get("VIRNUCPRO_KERNELS") != "torch"
    )


def linear(
    rows: Tensor, layer: nn.Module, plus: Tensor | None = None, *, gelu: bool = False
) -> Tensor:
    """layer(rows), its exact GELU, or its sum with `plus`: (T, D) → (T, E)."""
    result: Tensor
    if _by_onednn(rows):
        onednn: Any = torch.ops.mkldnn._linear_pointwise
        weights = layer.weight, layer.bias
        if plus is None:
            result = onednn(rows, *weights, "gelu" if gelu else "none", [], "none")
        else:
            result = onednn.binary(rows, plus, *weights, "add")
        return result
    result = F.gelu(layer(rows)) if gelu else layer(rows)
    return result if plus is None else plus + result


def add_norm(x: Tensor, rows: Tensor, layer: nn.Linear, norm: nn.LayerNorm) -> Tensor:
    """norm(x + layer(rows)): (T, D). x is used up: where fused, the sum is made in its place."""
    if not fused(x):
        result: Tensor = norm(linear(rows, layer, x))
        return result
    from virnucpro_core.models import kernels

    x.addmm_(rows, layer.weight.t())
    return kernels.layer_norm(x, layer.bias, (norm.weight, norm.bias), norm.eps)


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
