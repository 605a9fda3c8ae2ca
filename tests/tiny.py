"""A model of the real architectures with random weights, small enough to run in a moment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import nn

from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.models.dnabert_s import DNABERTS, NAMES
from virnucpro_core.models.esm2 import ESM2, HUGGING_FACE
from virnucpro_core.models.store import Model, write_model

WINDOW = 300
SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]


def save_published(
    module: nn.Module, names: Mapping[str, str], layers: int, path: Path, prefix: str = ""
) -> None:
    """Save a module under the published names, the inverse of `encoder.renamed`."""
    state = module.state_dict()
    published = {}
    for ours, theirs in names.items():
        for n in range(layers if "{n}" in ours else 1):
            for kind in ("weight", "bias"):
                if (key := f"{ours.format(n=n)}.{kind}") in state:
                    parts = state[key].chunk(len(theirs.split()))
                    for name, part in zip(theirs.split(), parts, strict=True):
                        published[f"{prefix}{name.format(n=n)}.{kind}"] = part.contiguous()
    save_file(published, path)


def save_esm2(folder: Path, layers: int = 2, dim: int = 32, heads: int = 4) -> None:
    folder.mkdir(parents=True)
    config = {
        "model_type": "esm",
        "position_embedding_type": "rotary",
        "num_hidden_layers": layers,
        "hidden_size": dim,
        "num_attention_heads": heads,
        "intermediate_size": 4 * dim,
        "token_dropout": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_published(ESM2(layers, dim, heads), HUGGING_FACE, layers, folder / "model.safetensors")


def save_dnabert_s(folder: Path, layers: int = 2, dim: int = 24, heads: int = 3) -> None:
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text = [f"{a}{b}{c}{a}ACGT{b}{c}" for a in "ACGT" for b in "ACGT" for c in "ACGT"]
    trainer = trainers.BpeTrainer(vocab_size=64, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "vocab_size": 64,
        "num_hidden_layers": layers,
        "hidden_size": dim,
        "num_attention_heads": heads,
        "intermediate_size": 40,
    }
    (folder / "config.json").write_text(json.dumps(config))
    module = DNABERTS(64, layers, dim, heads, 40)
    save_published(module, NAMES, layers, folder / "model.safetensors")


def write_tiny_model(root: Path, name: str = "tiny", seed: int = 0) -> Model:
    """Write `root/name`, a complete model folder."""
    torch.manual_seed(seed)
    folder = root / name
    save_dnabert_s(folder / "dnabert_s")
    save_esm2(folder / "esm2")
    save_file(MLPClassifier(56, 8).state_dict(), folder / "classifier.safetensors")
    parts = {
        "nucleotide": "dnabert_s",
        "protein": "esm2",
        "classifier": "classifier.safetensors",
    }
    return write_model(folder, name, WINDOW, 56, parts)
