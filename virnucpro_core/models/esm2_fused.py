"""ESM-2's layers on a GPU in half precision: `esm2.Layer`, with fewer passes over memory.

Residual sums are made inside the GEMM whose rows they add, which leaves no place for its bias: the
stream `x` is short of all biases so far, and what it is *owed* is added whenever it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from virnucpro_core.models.attention import Layout, Rotary
from virnucpro_core.models.float8 import Float8Linear

if TYPE_CHECKING:
    from virnucpro_core.models.esm2 import Layer


def run(
    layers: Sequence[Layer],
    norm: nn.LayerNorm,
    x: Tensor,
    qkv: Tensor,
    layout: Layout,
    rotary: Rotary,
) -> Tensor:
    """All layers and the norm behind them: (T, dim) → (T, dim), x being used up.

    qkv: the first layer's queries, keys and values, (T, 3·dim).
    """
    biases = torch.stack([b for layer in layers for b in (layer.out.bias, layer.down.bias)])
    owed = F.pad(biases.float().cumsum(0), (0, 0, 1, 0))
    for n, layer in enumerate(layers):
        if n > 0:
            qkv = project(layer.attention_norm, layer.qkv, x, owed[2 * n])
        x.addmm_(layer.attend(qkv, layout, rotary), layer.out.weight.t())
        _feed_forward(layer, x, owed[2 * n + 1])
    return _normed(norm, x, owed[-1])


def project(
    norm: nn.LayerNorm, linear: nn.Linear | Float8Linear, x: Tensor, owed: Tensor | None = None
) -> Tensor:
    """linear(norm(x)): (T, D) → (T, D')."""
    quantize = isinstance(linear, Float8Linear)
    return linear(_normed(norm, x, owed, quantize=quantize))  # type: ignore[no-any-return]


def _normed(
    norm: nn.LayerNorm, x: Tensor, owed: Tensor | None, *, quantize: bool = False
) -> Tensor:
    """norm(x); quantized: in e4m3, without the norm's affine map."""
    from virnucpro_core.models import kernels

    return kernels.layer_norm(x, owed, None if quantize else (norm.weight, norm.bias), norm.eps)


def _feed_forward(layer: Layer, x: Tensor, owed: Tensor) -> None:
    """Add down(gelu(up(norm(x)))), but for the last bias, to x. GELU is in its tanh form."""
    up, down = layer.up, layer.down
    if isinstance(up, Float8Linear):
        assert isinstance(down, Float8Linear)
        down.add_to(x, up.gelu(_normed(layer.ffn_norm, x, owed, quantize=True)))
        return
    rows = _normed(layer.ffn_norm, x, owed)
    x.addmm_(torch._addmm_activation(up.bias, rows, up.weight.t(), use_gelu=True), down.weight.t())
