"""Encoders of ours in the form in which the originals are published on the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from virnucpro_core.models.dnabert_s import DNABERTS, Layer
from virnucpro_core.models.esm2 import ESM2
from virnucpro_core.published.formats import DNABERT_S, HUGGING_FACE


def published(module: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    """A module's state dict under published names: the inverse of `formats.Renamed`."""
    state: dict[str, Tensor] = {}
    for key, tensor in module.state_dict().items():
        ours, kind = key.rsplit(".", 1)
        layer = ours.split(".")[1] if ours.startswith("layers.") else ""
        theirs = names[ours.replace(f".{layer}.", ".{n}.", 1) if layer else ours].split()
        for name, part in zip(theirs, tensor.chunk(len(theirs)), strict=True):
            state[f"{name.format(n=layer)}.{kind}"] = part.detach().clone()
    return state


def _save(folder: Path, state: dict[str, Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def save_dnabert_s(folder: Path, model: DNABERTS) -> None:
    """config.json and model.safetensors of DNABERT-S, without its tokenizer."""
    first = model.layers[0]
    assert isinstance(first, Layer)
    config = {
        "model_type": "bert",
        "hidden_size": model.dim,
        "intermediate_size": first.down.in_features,
        "layer_norm_eps": model.embedding_norm.eps,
        "num_attention_heads": model.heads,
        "num_hidden_layers": len(model.layers),
        "vocab_size": model.embedding.num_embeddings,
    }
    _save(folder, published(model, DNABERT_S), config)


def save_esm2(folder: Path, model: ESM2) -> None:
    """config.json and model.safetensors as transformers' EsmModel has them."""
    config = {
        "model_type": "esm",
        "hidden_size": model.dim,
        "num_attention_heads": model.dim // model.width,
        "num_hidden_layers": len(model.layers),
        "position_embedding_type": "rotary",
        "token_dropout": model.token_dropout,
    }
    state = published(model, HUGGING_FACE)
    _save(folder, {f"esm.{name}": tensor for name, tensor in state.items()}, config)
