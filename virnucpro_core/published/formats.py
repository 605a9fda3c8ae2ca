"""Encoders and classifiers as others publish them, read into our names.

What `vnp.load_esm2` and its like read is here: published files, and the folders of our store.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from virnucpro_core.errors import ModelError
from virnucpro_core.models.classifier import MLPClassifier, classifier_of
from virnucpro_core.models.dnabert_s import DNABERTS, dnabert_s_of
from virnucpro_core.models.esm2 import ESM2, esm2_of
from virnucpro_core.models.layout import CONFIG, Stored, filled, read_encoder
from virnucpro_core.published.checkpoints import read_checkpoint, read_state_dict, state_dict_of
from virnucpro_core.published.pickles import Inert
from virnucpro_core.reading import read_object

DNABERT_S = {
    "embedding": "embeddings.word_embeddings",
    "token_type": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "layers.{n}.qkv": "encoder.layer.{n}.attention.self.Wqkv",
    "layers.{n}.out": "encoder.layer.{n}.attention.output.dense",
    "layers.{n}.attention_norm": "encoder.layer.{n}.attention.output.LayerNorm",
    "layers.{n}.gated": "encoder.layer.{n}.mlp.gated_layers",
    "layers.{n}.down": "encoder.layer.{n}.mlp.wo",
    "layers.{n}.ffn_norm": "encoder.layer.{n}.mlp.layernorm",
}
"""Our modules' names to those of DNABERT-S's modelling code (bert_layers.py)."""

FAIR_ESM = {
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

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What weights are called in a Hugging Face folder; the first that is there is taken."""


_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")


class Renamed(Mapping[str, Tensor]):
    """A published state dict under our names; what is several tensors there is stacked when asked.

    names: our modules' names to the published ones, `{n}` standing for the layer; of several
    published names, parted by blanks, the weights are stacked along the first dimension.
    """

    def __init__(self, state: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        layers = len({found[1] for name in state if (found := _LAYER.search(name))})
        self._parts: dict[str, list[Tensor]] = {}
        for ours, theirs in names.items():
            for n in range(layers if "{n}" in ours else 1):
                for kind in ("weight", "bias"):
                    keys = [f"{name}.{kind}" for name in theirs.format(n=n).split()]
                    if all(key in state for key in keys):
                        self._parts[f"{ours.format(n=n)}.{kind}"] = [state[key] for key in keys]

    def __getitem__(self, name: str) -> Tensor:
        parts = self._parts[name]
        alike = parts[0].ndim and len({part.shape for part in parts}) == 1
        # else the one has a shape that is refused
        return torch.cat(parts) if len(parts) > 1 and alike else parts[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _agree(path: Path, says: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    for key, size in sizes.items():
        if says.get(key) != size:
            raise ModelError(
                f"{path}: its configuration says {key} {says.get(key)!r:.40}, its weights have "
                f"{size}; fetch the model again."
            )


def _folder_state(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The weights of a Hugging Face folder, without a prefix that some of them have."""
    for name in WEIGHT_FILES:
        if (folder / name).exists():
            state = read_state_dict(folder / name)
            return {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    raise ModelError(f"{folder}: holds no weights; give a folder with model.safetensors.")


def read_esm2(path: Path) -> Stored:
    """ESM-2 out of fair-esm's `.pt`, a Hugging Face folder, or a folder of ours."""
    if path.is_dir():
        says = read_object(path / CONFIG)
        if "encoder" in says:
            return read_encoder(path, "esm2")
        if says.get("model_type") != "esm" or says.get("position_embedding_type") != "rotary":
            raise ModelError(f"{path / CONFIG}: describes no ESM-2; give an ESM-2 folder.")
        layers, dim, heads = "num_hidden_layers", "hidden_size", "num_attention_heads"
        state = Renamed(_folder_state(path, "esm."), HUGGING_FACE)
    else:
        content = read_checkpoint(path)
        cfg = content.get("cfg")
        record = cfg.get("model") if isinstance(cfg, dict) else None
        if not isinstance(record, Inert):
            raise ModelError(f"{path}: no ESM-2 checkpoint of fair-esm; give esm2_t36_3B_UR50D.pt.")
        says = record.state
        layers, dim, heads = "encoder_layers", "encoder_embed_dim", "encoder_attention_heads"
        prefix = re.compile(r"^encoder\.(sentence_encoder\.)?")
        weights = state_dict_of(content, path)
        state = Renamed({prefix.sub("", key): t for key, t in weights.items()}, FAIR_ESM)
    config = {
        "encoder": "esm2",
        "heads": says.get(heads),
        "token_dropout": says.get("token_dropout", True),
    }
    stored = Stored(path, config, state)
    _agree(path, says, {layers: stored.layers, dim: stored.matrix("embedding.weight")[1]})
    return stored


def read_dnabert_s(folder: Path) -> Stored:
    """DNABERT-S out of a Hugging Face folder, whose own code is not run, or a folder of ours."""
    says = read_object(folder / CONFIG)
    if "encoder" in says:
        return read_encoder(folder, "dnabert_s")
    heads, eps = says.get("num_attention_heads"), says.get("layer_norm_eps", 1e-12)
    config = {"encoder": "dnabert_s", "heads": heads, "eps": eps}
    stored = Stored(folder, config, Renamed(_folder_state(folder, "bert."), DNABERT_S))
    vocabulary, dim = stored.matrix("embedding.weight")
    sizes = {"vocab_size": vocabulary, "hidden_size": dim, "num_hidden_layers": stored.layers}
    _agree(folder, says, {**sizes, "intermediate_size": stored.matrix("layers.0.down.weight")[1]})
    return stored


def read_classifier(path: Path) -> Stored:
    """A classifier out of the original's `.pth`, a state dict, or safetensors."""
    return Stored(path, {}, read_state_dict(path))


def load_esm2(
    path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> ESM2:
    """Load ESM-2 from fair-esm's `.pt`, a Hugging Face folder, or a model's folder of ours.

    Nothing in a file is executed. Raises ModelError when it is missing, damaged or not ESM-2.
    """
    stored = read_esm2(Path(path))
    return filled(esm2_of(stored), stored, device, dtype)


def load_dnabert_s(
    path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> DNABERTS:
    """Load DNABERT-S from a folder: config.json, weights, and tokenizer.json to embed text.

    The folder's own modelling code is not run. Raises ModelError when something is missing, damaged
    or not a MosaicBERT.
    """
    stored = read_dnabert_s(Path(path))
    return filled(dnabert_s_of(stored), stored, device, dtype)


def load_classifier(path: str | Path) -> MLPClassifier:
    """Load a classifier: the module that the original pickles whole, a state dict, or safetensors.

    Returns a float32 module in eval mode, on the CPU, whose output are logits. Raises ModelError
    when the file is not readable by the restricted loader, or holds no classifier.
    """
    return classifier_of(read_classifier(Path(path)))
