"""DNABERT-S (Zhou et al. 2024, arXiv:2402.08777) over packed tokens, without padding.

Its architecture is MosaicBERT (Portes et al. 2023, arXiv:2312.17482): BERT's post-norm layers with
ALiBi in place of position embeddings and a gated linear unit as feed-forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from virnucpro_core.errors import ModelError
from virnucpro_core.models.attention import Layout, alibi_slopes, to_device, varlen_attention
from virnucpro_core.models.encoder import Encoder
from virnucpro_core.models.layout import TOKENIZER, Stored, filled, read_encoder, unfilled
from virnucpro_core.models.ops import add_norm, gated_gelu, linear, segment_mean
from virnucpro_core.sequences.tokens import NucleotideTokenizer, Tokens


class Layer(nn.Module):
    """Post-norm transformer layer with ALiBi and a gated feed-forward."""

    def __init__(self, dim: int, heads: int, inner: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=eps)
        self.gated = nn.Linear(dim, 2 * inner, bias=False)
        self.down = nn.Linear(inner, dim)
        self.ffn_norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor, layout: Layout, slopes: Tensor) -> Tensor:
        """(T, dim) → (T, dim), x being used up. slopes: ALiBi's, float32 (heads)."""
        q, k, v = linear(x, self.qkv).view(len(x), 3, self.heads, -1).unbind(1)
        mixed = varlen_attention(q, k, v, layout, slopes).flatten(1)
        x = add_norm(x, mixed, self.out, self.attention_norm)
        return add_norm(x, gated_gelu(linear(x, self.gated)), self.down, self.ffn_norm)


class DNABERTS(Encoder):
    """DNABERT-S; its vector of a sequence is the mean over all tokens, CLS and SEP included."""

    def __init__(
        self,
        vocabulary: int,
        layers: int,
        dim: int,
        heads: int,
        inner: int,
        *,
        eps: float = 1e-12,
        tokenizer: NucleotideTokenizer | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.heads = heads
        self.tokenizer = tokenizer
        self.embedding = nn.Embedding(vocabulary, dim)
        self.token_type = nn.Embedding(2, dim)
        self.embedding_norm = nn.LayerNorm(dim, eps=eps)
        self.layers = nn.ModuleList(Layer(dim, heads, inner, eps) for _ in range(layers))

    def tokenize(self, sequences: Sequence[str]) -> Tokens:
        if self.tokenizer is None:
            raise ModelError("this DNABERT-S came without tokenizer.json; fetch the model again.")
        return self.tokenizer(sequences)

    def forward(self, ids: Tensor, layout: Layout) -> Tensor:
        ids = to_device(ids, layout.cu_seqlens.device)
        # every token is of type 0, the first of BERT's two sentences
        x: Tensor = self.embedding_norm(self.embedding(ids) + self.token_type.weight[0])
        slopes = to_device(torch.tensor(alibi_slopes(self.heads)), x.device)
        for layer in self.layers:
            x = layer(x, layout, slopes)
        return x

    def pool(self, hidden: Tensor, layout: Layout) -> Tensor:
        return segment_mean(hidden, layout.cu_seqlens[:-1], layout.lengths)


def dnabert_s_of(stored: Stored) -> DNABERTS:
    """An `unfilled` DNABERT-S of the sizes of its weights, with the tokenizer beside them.

    Raises ModelError when the weights are none of DNABERT-S, or the tokenizer none for them.
    """
    vocabulary, dim = stored.matrix("embedding.weight")
    _, inner = stored.matrix("layers.0.down.weight")
    eps = stored.option("eps", lambda value: isinstance(value, float) and 0 < value < 1)
    path = stored.path / TOKENIZER
    tokenizer = NucleotideTokenizer(path, vocabulary) if path.exists() else None
    heads = stored.heads(dim)
    with unfilled():
        return DNABERTS(vocabulary, stored.layers, dim, heads, inner, eps=eps, tokenizer=tokenizer)


def load_dnabert_s(
    folder: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> DNABERTS:
    """Load the nucleotide encoder of a model in the store: `layout` says what lies in its folder.

    Raises ModelError when a file is missing, damaged or not of DNABERT-S.
    """
    stored = read_encoder(folder, "dnabert_s")
    return filled(dnabert_s_of(stored), stored, device, dtype)
