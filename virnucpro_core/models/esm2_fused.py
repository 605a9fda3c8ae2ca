"""ESM-2's layers on a GPU in half precision: `esm2.Layer`, with fewer passes over memory.

Residual sums are made inside the GEMM whose rows they add, which leaves no place for its bias: the
stream `x` is short of all biases so far, and what it is *owed* is added whenever it is read. A GEMM
in e4m3 can't add either: what it gives is *late*, its rows and the scale of each, and is added to
the stream when that is next read.
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

Late = tuple[Tensor, Tensor]
"""Rows (T, D), each still to be times its float32 (T) scale."""


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
    late: Late | None = None
    for n, layer in enumerate(layers):
        if n > 0:
            qkv = project(layer.attention_norm, layer.qkv, x, owed[2 * n], late)
        x.addmm_(layer.attend(qkv, layout, rotary), layer.out.weight.t())
        late = _feed_forward(layer, x, owed[2 * n + 1])
    return _normed(norm, x, owed[-1], late)


def project(
    norm: nn.LayerNorm,
    linear: nn.Linear | Float8Linear,
    x: Tensor,
    owed: Tensor | None = None,
    late: Late | None = None,
) -> Tensor:
    """linear(norm(x)): (T, D) → (T, D')."""
    if isinstance(linear, Float8Linear):
        return linear(_normed(norm, x, owed, late, quantize=True), linear.bias)  # type: ignore[no-any-return]
    return linear(_normed(norm, x, owed, late))  # type: ignore[no-any-return]


def _normed(
    norm: nn.LayerNorm,
    x: Tensor,
    owed: Tensor | None,
    late: Late | None = None,
    *,
    quantize: bool = False,
) -> Tensor:
    """norm(x), late being added to x; quantized: in e4m3, without the norm's affine map."""
    from virnucpro_core.models import kernels

    affine = None if quantize else (norm.weight, norm.bias)
    delta, scale = late or (None, None)
    return kernels.layer_norm(x, owed, affine, norm.eps, delta=delta, row_scale=scale)


def _feed_forward(layer: Layer, x: Tensor, owed: Tensor) -> Late | None:
    """Add down(gelu(up(norm(x)))) to x, or give it to be added. GELU is in its tanh form."""
    if isinstance(layer.up, Float8Linear):
        from virnucpro_core.models import kernels

        rows, scale = kernels.gelu_quantize(project(layer.ffn_norm, layer.up, x, owed))
        return layer.down(rows), scale
    rows = _normed(layer.ffn_norm, x, owed)
    rows = torch._addmm_activation(layer.up.bias, rows, layer.up.weight.t(), use_gelu=True)
    x.addmm_(rows, layer.down.weight.t())
    return None
