"""ESM-2 (Lin et al. 2023, doi:10.1126/science.ade2574) over packed tokens, without padding."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from virnucpro_core.errors import ModelError
from virnucpro_core.models import esm2_fused
from virnucpro_core.models.attention import Layout, Rotary, to_device, varlen_attention
from virnucpro_core.models.checkpoints import read_checkpoint, read_state_dict
from virnucpro_core.models.encoder import (
    Encoder,
    check_sizes,
    config_size,
    folder_config,
    folder_weights,
    load_into,
    renamed,
    unfilled,
)
from virnucpro_core.models.float8 import Float8Linear
from virnucpro_core.models.ops import fused, segment_mean
from virnucpro_core.models.pickles import Inert
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
        return self.qkv(self.attention_norm(x))  # type: ignore[no-any-return]

    def attend(self, qkv: Tensor, layout: Layout, rotary: Rotary) -> Tensor:
        """Every head's mix of its sequence's values: (T, 3·dim) → (T, dim)."""
        q, k, v = qkv.view(len(qkv), 3, self.heads, -1).unbind(1)
        return varlen_attention(q, k, v, layout, rotary).flatten(1)

    def forward(self, x: Tensor, qkv: Tensor | None, layout: Layout, rotary: Rotary) -> Tensor:
        """(T, dim) → (T, dim). qkv: what `project` makes of x, where that is known."""
        qkv = self.project(x) if qkv is None else qkv
        x = x + self.out(self.attend(qkv, layout, rotary))
        return x + self.down(F.gelu(self.up(self.ffn_norm(x))))  # type: ignore[no-any-return]


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
        quantized = isinstance(self.layers[-1].qkv, Float8Linear)
        return "fp8" if quantized else super().precision

    @torch.no_grad()
    def to_fp8(self) -> Self:
        """Quantize to e4m3, in place, all but what is sensitive: the attention's output, qkv in the
        first sixth of the layers and the feed-forward in the first eighteenth.

        What goes wrong there goes through all the layers behind. The rest is to be in bfloat16, on
        a GPU with such tensor cores.
        """
        depth = len(self.layers)
        for n, layer in enumerate(self.layers):
            for name, norm, begin in (
                ("qkv", layer.attention_norm, depth // 6),
                ("up", layer.ffn_norm, depth // 18),
                ("down", None, depth // 18),
            ):
                if n >= begin:
                    setattr(layer, name, Float8Linear(getattr(layer, name), norm))
        return self


_FAIR_ESM = {
    "embedding": "embed_tokens",
    "layers.{n}.attention_norm": "layers.{n}.self_attn_layer_norm",
    "layers.{n}.qkv": "layers.{n}.self_attn.q_proj layers.{n}.self_attn.k_proj "
    "layers.{n}.self_attn.v_proj",
    "layers.{n}.out": "layers.{n}.self_attn.out_proj",
    "layers.{n}.ffn_norm": "layers.{n}.final_layer_norm",
    "layers.{n}.up": "layers.{n}.fc1",
    "layers.{n}.down": "layers.{n}.fc2",
    "norm": "emb_layer_norm_after",
}
"""Our modules' names to fair-esm's; several names are stacked into one weight."""

HUGGING_FACE = {
    "embedding": "embeddings.word_embeddings",
    "layers.{n}.attention_norm": "encoder.layer.{n}.attention.LayerNorm",
    "layers.{n}.qkv": "encoder.layer.{n}.attention.self.query "
    "encoder.layer.{n}.attention.self.key encoder.layer.{n}.attention.self.value",
    "layers.{n}.out": "encoder.layer.{n}.attention.output.dense",
    "layers.{n}.ffn_norm": "encoder.layer.{n}.LayerNorm",
    "layers.{n}.up": "encoder.layer.{n}.intermediate.dense",
    "layers.{n}.down": "encoder.layer.{n}.output.dense",
    "norm": "encoder.emb_layer_norm_after",
}
"""Our modules' names to those of transformers' EsmModel."""


def _from_fair_esm(path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    cfg = read_checkpoint(path).get("cfg")
    record = cfg.get("model") if isinstance(cfg, dict) else None
    if not isinstance(record, Inert):
        raise ModelError(f"{path}: no ESM-2 checkpoint of fair-esm; give esm2_t36_3B_UR50D.pt.")
    config = {
        "num_hidden_layers": record.state.get("encoder_layers"),
        "hidden_size": record.state.get("encoder_embed_dim"),
        "num_attention_heads": record.state.get("encoder_attention_heads"),
        "token_dropout": record.state.get("token_dropout", True),
    }
    prefix = re.compile(r"^encoder\.(sentence_encoder\.)?")
    return config, {prefix.sub("", key): t for key, t in read_state_dict(path).items()}


def _from_hugging_face(folder: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    config = folder_config(folder)
    if config.get("model_type") != "esm" or config.get("position_embedding_type") != "rotary":
        raise ModelError(f"{folder / 'config.json'}: describes no ESM-2; give an ESM-2 folder.")
    state = read_state_dict(folder_weights(folder))
    return config, {key.removeprefix("esm."): tensor for key, tensor in state.items()}


def load_esm2(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ESM2:
    """Load ESM-2 from fair-esm's `.pt`, or from a Hugging Face folder.

    Nothing in the file is executed. Raises ModelError when it is missing, damaged or not ESM-2.
    """
    path = Path(path)
    if path.is_dir():
        (config, state), names = _from_hugging_face(path), HUGGING_FACE
    else:
        (config, state), names = _from_fair_esm(path), _FAIR_ESM
    layers, dim, heads = (
        config_size(path, config, key)
        for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    dropout = config.get("token_dropout", True)
    if not isinstance(dropout, bool):
        raise ModelError(f"{path}: its 'token_dropout' is no true or false; fetch it again.")
    embedding = f"{names['embedding']}.weight"
    check_sizes(path, state, {embedding: (len(ESM_ALPHABET), dim)}, layers, 2 * heads)
    with unfilled():
        model = ESM2(layers, dim, heads, token_dropout=dropout)
    load_into(model, renamed(state, names, layers), path, device, dtype)
    return model.eval()
