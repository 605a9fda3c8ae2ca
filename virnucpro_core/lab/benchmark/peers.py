"""Other ways to run ESM-2, as `virnucpro benchmark` times them where they are installed.

Random weights of the given size; each function gives a run of one batch, token ids int64 (B, L).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

Shape = tuple[int, int, int]
"""Layers, dim and heads."""
Run = Callable[[], object]


def fair_esm(shape: Shape, ids: Tensor) -> Run:
    """fair-esm in float32, as the original VirNucPro calls it."""
    with ids.device:
        model = import_module("esm").model.esm2.ESM2(*shape).eval()
    return lambda: model(ids, repr_layers=[shape[0]])


def transformers(shape: Shape, ids: Tensor, *, compiled: bool = False) -> Run:
    """transformers' EsmModel in bfloat16 with SDPA; compiled layer by layer, as all are alike."""
    library = import_module("transformers")
    layers, dim, heads = shape
    config = library.EsmConfig(
        vocab_size=33,
        hidden_size=dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * dim,
        position_embedding_type="rotary",
        token_dropout=True,
        mask_token_id=32,
        pad_token_id=1,
        attn_implementation="sdpa",
    )
    with ids.device:
        model = library.EsmModel(config, add_pooling_layer=False).bfloat16().eval()
    if compiled:
        for layer in model.encoder.layer:
            layer.compile()
    mask = torch.ones_like(ids)
    return lambda: model(input_ids=ids, attention_mask=mask)


def esm_efficient(shape: Shape, ids: Tensor) -> Run:
    """esm-efficient in bfloat16, packed; it needs flash-attn."""
    with ids.device:
        model = import_module("esme").ESM2(*shape).eval()
    length = ids.shape[1]
    ends = torch.arange(0, ids.numel() + 1, length, dtype=torch.int32, device=ids.device)
    return lambda: model.forward_representation(ids.flatten(), pad_args=(ends, length))


class Peer(NamedTuple):
    """budgets: the tokens a batch to try. bar: how many times its best speed ours is to be."""

    name: str
    make: Callable[[Shape, Tensor], Run]
    budgets: tuple[int, ...]
    bar: float


PEERS = (
    Peer("fair-esm, fp32, batches of 2,048 tokens", fair_esm, (2048,), 15.0),
    Peer("transformers, bf16, SDPA", transformers, (8192, 32_768, 65_536), 1.7),
    Peer("transformers, compiled", partial(transformers, compiled=True), (16_384, 32_768), 1.2),
    Peer("esm-efficient, bf16", esm_efficient, (16_384, 32_768, 65_536), 1.3),
)
