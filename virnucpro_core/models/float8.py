"""Linear layers in e4m3, eight bits, on tensor cores that multiply them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from virnucpro_core.models.cublaslt import gemm
from virnucpro_core.models.precision import FP8_MAX, NORM_SCALE


class Float8Linear(nn.Module):
    """A linear layer of e4m3 rows and weights, one scale for all of either.

    e4m3 is a float: what is small keeps its precision over 15 octaves, so rows, or weights, of
    unlike size need no scales of their own. What the layer reads, and with `gelu` what it gives, is
    times a constant under which nothing can overflow: a normed row of width d is at most √d long,
    so a product with it is at most √d times as large as the weights' row.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, before: nn.LayerNorm | Float8Linear) -> None:
        """before: the norm that makes its rows, whose affine map is folded in, or the layer whose
        GELU does."""
        super().__init__()
        weight, bias = linear.weight.detach().float(), linear.bias.detach().float()
        if isinstance(before, nn.LayerNorm):
            bias = bias + weight @ before.bias.float()
            weight = weight * before.weight.float()
            rows_scale = NORM_SCALE
        else:
            rows_scale = before.scale.item()
        scale = FP8_MAX / weight.abs().max().clamp(min=1e-12)
        bound = (weight.norm(dim=1) * weight.shape[1] ** 0.5 + bias.abs()).max()
        self.factor = 1 / (scale.item() * rows_scale)
        self.register_buffer("weight", (weight * scale).to(torch.float8_e4m3fn))
        self.register_buffer("bias", bias.to(torch.bfloat16))
        self.register_buffer("scale", FP8_MAX / bound.clamp(min=1e-12).reshape(1))

    def forward(self, rows: Tensor) -> Tensor:
        """rows e4m3 (T, D) → bfloat16 (T, D')."""
        out = rows.new_empty(len(rows), len(self.weight), dtype=torch.bfloat16)
        return gemm(rows, self.weight, self.factor, out, bias=self.bias)

    def gelu(self, rows: Tensor) -> Tensor:
        """GELU (tanh form) of the layer, e4m3: (T, D) → (T, D'), times `scale`."""
        out = rows.new_empty(len(rows), len(self.weight))
        return gemm(
            rows, self.weight, self.factor, out, bias=self.bias, gelu=True, scale=self.scale
        )

    def add_to(self, x: Tensor, rows: Tensor) -> None:
        """Add the layer, without its bias, to bfloat16 x (T, D')."""
        gemm(rows, self.weight, self.factor, x, add=True)
