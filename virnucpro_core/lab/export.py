"""Writing models of ours in the form in which the originals are published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from virnucpro_core.files import written_aside
from virnucpro_core.models.dnabert_s import DNABERTS, NAMES, Layer
from virnucpro_core.models.esm2 import ESM2, HUGGING_FACE
from virnucpro_core.sequences.tokens import ESM_ALPHABET, ESM_MASK


def published(module: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    """A module's state dict under published names: the inverse of `encoder.renamed`."""
    state: dict[str, Tensor] = {}
    for key, tensor in module.state_dict().items():
        ours, kind = key.rsplit(".", 1)
        layer = ours.split(".")[1] if ours.startswith("layers.") else ""
        theirs = names[ours.replace(f".{layer}.", ".{n}.", 1) if layer else ours].split()
        for name, part in zip(theirs, tensor.chunk(len(theirs)), strict=True):
            state[f"{name.format(n=layer)}.{kind}"] = part
    return state


def write_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Store a state dict as safetensors, floats as fp16."""
    halves = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in state.items()
    }
    # not save_file, which leaves the file to its owner alone
    with written_aside(path) as aside:
        aside.write_bytes(save(halves, metadata={"format": "pt"}))


def _write(folder: Path, module: nn.Module, names: Mapping[str, str], config: Any) -> None:
    write_weights(published(module, names), folder / "model.safetensors")
    with written_aside(folder / "config.json") as aside:
        aside.write_text(json.dumps(config, indent=2) + "\n")


def write_dnabert_s(folder: Path, model: DNABERTS) -> None:
    """Write config.json and model.safetensors as DNABERT-S has them; the tokenizer is not known."""
    first = model.layers[0]
    assert isinstance(first, Layer)
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "alibi_starting_size": 512,
        "hidden_act": "gelu",
        "hidden_size": model.dim,
        "intermediate_size": first.down.in_features,
        "layer_norm_eps": model.embedding_norm.eps,
        "max_position_embeddings": 512,
        "num_attention_heads": model.heads,
        "num_hidden_layers": len(model.layers),
        "type_vocab_size": model.token_type.num_embeddings,
        "vocab_size": model.embedding.num_embeddings,
    }
    _write(folder, model, NAMES, config)


def write_esm2(folder: Path, model: ESM2) -> None:
    """Write config.json and model.safetensors, fit for transformers' EsmModel too."""
    config = {
        "architectures": ["EsmModel"],
        "model_type": "esm",
        "attention_probs_dropout_prob": 0.0,
        "emb_layer_norm_before": False,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": model.dim,
        "intermediate_size": 4 * model.dim,
        "is_folding_model": False,
        "layer_norm_eps": model.norm.eps,
        "mask_token_id": ESM_MASK,
        "max_position_embeddings": 1026,
        "num_attention_heads": model.dim // model.width,
        "num_hidden_layers": len(model.layers),
        "pad_token_id": ESM_ALPHABET.index("<pad>"),
        "position_embedding_type": "rotary",
        "token_dropout": model.token_dropout,
        "vocab_size": len(ESM_ALPHABET),
    }
    _write(folder, model, HUGGING_FACE, config)
