"""The encoders' operations between their GEMMs, and the one choice of how each is computed.

Plain torch (CPU, float32, training) does what the published code does, step by step. On a GPU in
half precision, without gradients, `kernels` does each in one pass over memory. There the residual
is added inside the GEMM that makes it, which leaves no place for that GEMM's bias: biases are
summed up as *owed* and added whenever the stream is read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from virnucpro_core.models.precision import FP8_MAX, HALF, NORM_SCALE


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


class Quantized(NamedTuple):
    """Rows in e4m3 (T, D), each to be times its float32 (T) scale."""

    rows: Tensor
    scale: Tensor


class Float8Linear(nn.Module):
    """A linear layer in e4m3 on tensor cores: bfloat16 out.

    One scale for the whole weight: e4m3 is a float, and a row of small weights keeps its precision
    over 15 octaves. The affine map of a LayerNorm in front can be folded in; rows that are only
    normed are bounded, and need no scale of their own either.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    rows_scale: Tensor

    def __init__(self, linear: nn.Linear, norm: nn.LayerNorm | None = None) -> None:
        super().__init__()
        weight, bias = linear.weight.detach().float(), linear.bias.detach().float()
        factor = 1.0
        if norm is not None:
            bias = bias + weight @ norm.bias.float()
            weight = weight * norm.weight.float()
            factor = 1 / NORM_SCALE
        scale = weight.abs().max().clamp(min=1e-12) / FP8_MAX
        self.register_buffer("weight", (weight / scale).to(torch.float8_e4m3fn))
        self.register_buffer("bias", bias.to(torch.bfloat16))
        self.register_buffer("scale", scale.reshape(1))
        self.register_buffer("rows_scale", torch.full_like(self.scale, factor))

    def forward(self, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """rows e4m3 (T, D) → bfloat16 (T, D'), without the bias unless it is given."""
        return torch._scaled_mm(
            rows,
            self.weight.t(),
            self.rows_scale,
            self.scale,
            bias=bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )


Linear = nn.Linear | Float8Linear


class Residual:
    """A residual stream, (T, D), that linear layers read from and add to.

    biases: those of the linear layers that will be added to it, in order.
    """

    def __init__(self, x: Tensor, biases: Sequence[Tensor] = ()) -> None:
        self.x = x
        self.fused = fused(x)
        if self.fused and len(biases) > 1:
            biases = torch.stack(tuple(biases)).float().cumsum(0).unbind()
        self._owed_next = iter(biases)
        self._owed: Tensor | None = None
        self._delta: tuple[Tensor, Tensor] | None = None

    def add(self, rows: Tensor | Quantized, linear: Linear) -> None:
        """Add linear(rows) to the stream; in place where fused."""
        if isinstance(rows, Quantized):
            self._delta = linear(rows.rows), rows.scale
            self._owed = next(self._owed_next)
        elif self.fused:
            self.x.addmm_(rows, linear.weight.t())
            self._owed = next(self._owed_next)
        else:
            self.x = self.x + linear(rows)

    def normed(self, norm: nn.LayerNorm, *, quantize: bool = False) -> Tensor:
        """The stream through a LayerNorm; quantized: without its affine map, in e4m3."""
        if not self.fused:
            result: Tensor = norm(self.x)
            return result
        from virnucpro_core.models import kernels

        (delta, scale), self._delta = self._delta or (None, None), None
        affine = None if quantize else (norm.weight, norm.bias)
        return kernels.layer_norm(
            self.x, self._owed, affine, norm.eps, delta=delta, row_scale=scale
        )

    def through(self, norm: nn.LayerNorm, linear: Linear) -> Tensor:
        """linear(norm(stream))."""
        result: Tensor
        if isinstance(linear, Float8Linear):
            result = linear(self.normed(norm, quantize=True), linear.bias)
        else:
            result = linear(self.normed(norm))
        return result

    def through_gelu(self, norm: nn.LayerNorm, linear: Linear) -> Tensor | Quantized:
        """gelu(linear(norm(stream))): exact GELU, or where fused its tanh form, in the GEMM."""
        if isinstance(linear, Float8Linear):
            from virnucpro_core.models import kernels

            return Quantized(*kernels.gelu_quantize(self.through(norm, linear)))
        if self.fused:
            rows = self.normed(norm)
            return torch._addmm_activation(linear.bias, rows, linear.weight.t(), use_gelu=True)
        return F.gelu(self.through(norm, linear))


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
