"""A model of the real architectures with random weights, small enough to run in a moment."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import esm
import hugging_face
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from virnucpro_core.lab.export import write_modules
from virnucpro_core.lab.recipe import Recipe
from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.models.dnabert_s import DNABERTS
from virnucpro_core.models.esm2 import ESM2
from virnucpro_core.models.store import Model
from virnucpro_core.sequences.translate import translate

WINDOW = 300
SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]

MINI = Recipe.read()
SMALL = replace(
    MINI,
    nucleotide=(1, 16, 2), protein=(1, 16, 2), hidden=8, vocabulary=64, steps=40, batch=64,
    learning_rate=1e-2, average=0.8, contigs=60, look=20,
)  # fmt: skip
FAST = replace(SMALL, steps=2, look=2, batch=16)
"""It trains in a second, for what is not about how good the model is."""
ENDS = {"virus": "AT", "other": "GC"}
"""Third bases of the codons: nothing else tells the made-up viruses from the others."""


def tokenizer() -> str:
    """A tokenizer.json of 64 ids."""
    bpe = Tokenizer(models.BPE(unk_token="[UNK]"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    text = [f"{a}{b}{c}{a}ACGT{b}{c}" for a in "ACGT" for b in "ACGT" for c in "ACGT"]
    trainer = trainers.BpeTrainer(vocab_size=64, special_tokens=SPECIAL, show_progress=False)
    bpe.train_from_iterator(text, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return bpe.to_str()


def save_esm2(folder: Path, layers: int = 2, dim: int = 32, heads: int = 4) -> None:
    """A Hugging Face folder of an ESM-2."""
    hugging_face.save_esm2(folder, ESM2(layers, dim, heads))


def save_dnabert_s(folder: Path, layers: int = 2, dim: int = 24, heads: int = 3) -> None:
    """A Hugging Face folder of a DNABERT-S."""
    hugging_face.save_dnabert_s(folder, DNABERTS(64, layers, dim, heads, 40))
    (folder / "tokenizer.json").write_text(tokenizer())


def fair_esm(path: Path, layers: int, dim: int, heads: int, dtype: torch.dtype) -> Path:
    """A random ESM-2 as fair-esm's `.pt`."""
    torch.manual_seed(0)
    model = esm.model.esm2.ESM2(num_layers=layers, embed_dim=dim, attention_heads=heads)
    config = argparse.Namespace(
        encoder_layers=layers, encoder_embed_dim=dim, encoder_attention_heads=heads
    )
    state = {
        f"encoder.{'' if name.startswith('lm_head') else 'sentence_encoder.'}{name}": tensor.to(
            dtype if tensor.is_floating_point() else None
        )
        for name, tensor in model.state_dict().items()
    }
    torch.save({"cfg": {"model": config}, "model": state}, path)
    return path


def write_tiny_model(root: Path, name: str = "tiny", seed: int = 0) -> Model:
    """Write `root/name`, a complete model folder."""
    torch.manual_seed(seed)
    return write_modules(
        root / name,
        WINDOW,
        dnabert_s=DNABERTS(64, 2, 24, 3, 40),
        esm2=ESM2(2, 32, 4),
        classifier=MLPClassifier(56, 8),
        tokenizer=tokenizer(),
    )


def repeated_frames(fasta: Path, folder: Path, times: int) -> Path:
    """The frame table of a FASTA's contigs, so many times over: work that lasts for seconds."""
    text, many = fasta.read_text(), folder / "many.fa"
    many.write_text("".join(text.replace(">", f">{n}_") for n in range(times)))
    translate([many], folder / "frames.parquet", WINDOW)
    return folder / "frames.parquet"


def coding(rng: np.random.Generator, ends: str, codons: int) -> str:
    """Random codons without stops, whose third bases are of `ends`."""
    starts = rng.choice(["AC", "CA", "CC", "GA", "GC", "GT", "CT", "AT"], codons)
    return "".join(np.char.add(starts, rng.choice(list(ends), codons)))
