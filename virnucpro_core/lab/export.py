"""Modules of ours as parts of a model to be written."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.models.dnabert_s import DNABERTS
from virnucpro_core.models.esm2 import ESM2
from virnucpro_core.models.layout import Stored
from virnucpro_core.models.store import Model
from virnucpro_core.published.writing import write_model


def _stored(module: nn.Module, config: dict[str, object]) -> Stored:
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in module.state_dict().items()
    }
    return Stored(Path(type(module).__name__), config, halves)


def write_modules(
    folder: Path,
    window: int,
    *,
    dnabert_s: DNABERTS,
    esm2: ESM2,
    classifier: MLPClassifier,
    tokenizer: str,
    **about: object,
) -> Model:
    """Write a model of these modules, rounded to fp16, under the folder's name.

    tokenizer: the text of tokenizer.json. What else is told is kept in model.json.
    """
    eps, heads = dnabert_s.embedding_norm.eps, esm2.dim // esm2.width
    nucleotide = {"encoder": "dnabert_s", "heads": dnabert_s.heads, "eps": eps}
    protein = {"encoder": "esm2", "heads": heads, "token_dropout": esm2.token_dropout}
    return write_model(
        folder,
        folder.resolve().name,
        window,
        dnabert_s=_stored(dnabert_s, nucleotide),
        esm2=_stored(esm2, protein),
        classifier=_stored(classifier, {}),
        tokenizer=tokenizer.encode(),
        **about,
    )
