"""Linear layers in e4m3, eight bits, on tensor cores that multiply them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from virnucpro_core.models.precision import FP8_MAX, NORM_SCALE


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
