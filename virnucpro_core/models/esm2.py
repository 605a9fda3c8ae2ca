"""ESM-2 (Lin et al. 2023, doi:10.1126/science.ade2574) over packed tokens, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from virnucpro_core.models import esm2_fused
from virnucpro_core.models.attention import Layout, Rotary, to_device, varlen_attention
from virnucpro_core.models.encoder import Encoder
from virnucpro_core.models.float8 import Float8Linear
from virnucpro_core.models.layout import Stored, filled, read_encoder, unfilled
from virnucpro_core.models.ops import fused, linear, segment_mean
from virnucpro_core.sequences.tokens import ESM_ALPHABET, ESM_MASK, Tokens, esm_tokens

MAX_POOLED_RESIDUES = 1024
"""The original averages over a protein's first 1024 residues; the model sees them all."""

MASK_RATIO_TRAIN = 0.15 * 0.8
"""Share of mask tokens that ESM-2 was trained with; token_dropout rescales by it."""


class Layer(nn.Module):
    """Pre-norm transformer layer; query, key and value come out of one GEMM."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv: nn.Linear | Float8Linear = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.up: nn.Linear | Float8Linear = nn.Linear(dim, 4 * dim)
        self.down: nn.Linear | Float8Linear = nn.Linear(4 * dim, dim)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values, not rotated yet: (T, dim) → (T, 3·dim)."""
        if fused(x):
            return esm2_fused.project(self.attention_norm, self.qkv, x)
        return linear(self.attention_norm(x), self.qkv)

    def attend(self, qkv: Tensor, layout: Layout, rotary: Rotary) -> Tensor:
        """Every head's mix of its sequence's values: (T, 3·dim) → (T, dim)."""
        q, k, v = qkv.view(len(qkv), 3, self.heads, -1).unbind(1)
        return varlen_attention(q, k, v, layout, rotary).flatten(1)

    def forward(self, x: Tensor, qkv: Tensor | None, layout: Layout, rotary: Rotary) -> Tensor:
        """(T, dim) → (T, dim). qkv: what `project` makes of x, where that is known."""
        qkv = self.project(x) if qkv is None else qkv
        x = linear(self.attend(qkv, layout, rotary), self.out, x)
        return linear(linear(self.ffn_norm(x), self.up, gelu=True), self.down, x)


class ESM2(Encoder):
    """ESM-2; its vector of a protein is the mean of the last layer over residues, BOS and EOS not.

    `forward` gives what fair-esm calls the representation of the last layer, after the final norm.
    """

    def __init__(self, layers: int, dim: int, heads: int, *, token_dropout: bool = True) -> None:
        super().__init__()
        self.dim = dim
        self.width = dim // heads
        self.token_dropout = token_dropout
        self.embedding = nn.Embedding(len(ESM_ALPHABET), dim)
        self.layers: Sequence[Layer] = cast(
            Any, nn.ModuleList(Layer(dim, heads) for _ in range(layers))
        )
        self.norm = nn.LayerNorm(dim)

    def tokenize(self, sequences: Sequence[str]) -> Tokens:
        return esm_tokens(sequences)

    def _read(self, ids: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Embeddings of token ids on the CPU, and the first layer's queries, keys and values.

        Those depend on nothing but the token, so the layer computes them for the alphabet, and each
        token looks its own up. Mask tokens change the scale of their whole sequence.
        """
        project = self.layers[0].project
        place = to_device(ids, layout.cu_seqlens.device)
        if self.token_dropout and (ids == ESM_MASK).any():
            masked = place == ESM_MASK
            share = segment_mean(masked[:, None], layout.cu_seqlens[:-1], layout.lengths)
            scale = (1 - MASK_RATIO_TRAIN) / (1 - share)
            scale = scale[layout.sequence_of].masked_fill(masked[:, None], 0.0)
            x = self.embedding(place) * scale.to(self.dtype)
            return x, project(x)
        table = self.embedding.weight
        if self.token_dropout:
            table = table * (1 - MASK_RATIO_TRAIN)
        return F.embedding(place, table), F.embedding(place, project(table))

    def forward(self, ids: Tensor, layout: Layout) -> Tensor:
        x, qkv = self._read(ids, layout)
        rotary = Rotary.of(layout, self.width)
        if fused(x):
            return esm2_fused.run(self.layers, self.norm, x, qkv, layout, rotary)
        known: Tensor | None = qkv
        for layer in self.layers:
            x, known = layer(x, known, layout, rotary), None
        return self.norm(x)  # type: ignore[no-any-return]

    def pool(self, hidden: Tensor, layout: Layout) -> Tensor:
        residues = (layout.lengths - 2).clamp(0, MAX_POOLED_RESIDUES)
        return segment_mean(hidden, layout.cu_seqlens[:-1] + 1, residues)

    @property
    def precision(self) -> str:
        return "fp8" if isinstance(self.layers[-1].up, Float8Linear) else super().precision

    @torch.no_grad()
    def to_fp8(self, kept: tuple[int, int] | None = None) -> Self:
        """Quantize to e4m3, in place, all but the attention's output and what is sensitive.

        kept: of so many first layers qkv, and the feed-forward, are left; by default a sixth and an
        eighteenth. What goes wrong there goes through all the layers behind. The rest is to be in
        bfloat16, on a GPU with such tensor cores.
        """
        depth = len(self.layers)
        qkv, feed_forward = kept or (depth // 6, depth // 18)
        for n, layer in enumerate(self.layers):
            if n >= max(1, qkv):  # the first one's is looked up
                layer.qkv = Float8Linear(cast(nn.Linear, layer.qkv), layer.attention_norm)
            if n >= feed_forward:
                layer.up = Float8Linear(cast(nn.Linear, layer.up), layer.ffn_norm)
                layer.down = Float8Linear(cast(nn.Linear, layer.down), layer.up)
        return self


def esm2_of(stored: Stored) -> ESM2:
    """An `unfilled` ESM-2 of the sizes of its weights; ModelError when they are none of ESM-2."""
    _, dim = stored.matrix("embedding.weight")
    dropout = stored.option("token_dropout", lambda value: isinstance(value, bool))
    with unfilled():
        return ESM2(stored.layers, dim, stored.heads(dim, 2), token_dropout=dropout)


def load_esm2(
    folder: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> ESM2:
    """Load the protein encoder of a model in the store: `layout` says what lies in its folder.

    Raises ModelError when a file is missing, damaged or not of ESM-2.
    """
    stored = read_encoder(folder, "esm2")
    return filled(esm2_of(stored), stored, device, dtype)
