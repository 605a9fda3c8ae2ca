"""What each half of a frame's embedding says alone: the nucleotides' vector, and the protein's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from virnucpro_core.embedding.shards import Source
from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.models.dnabert_s import dnabert_s_of
from virnucpro_core.models.layout import filled, read_encoder
from virnucpro_core.models.store import Model
from virnucpro_core.results.calls import Float32Array

USUAL = 16_384
"""The first frames of a sample, whose mean stands for a hidden half."""


def hidden_halves(model: Model, sources: Sequence[Source]) -> tuple[int, Float32Array]:
    """The nucleotides' part of an embedding, in values, and what hides each half, float32 (dim).

    A model that was trained with halves hidden takes what it was trained with: the vectors of no
    sequence at all. Others have never met that, and get the mean of the sample's first USUAL
    frames, in the order of sources: nothing but what is usual here.
    """
    stored = read_encoder(model.nucleotide, "dnabert_s")
    width = stored.matrix("embedding.weight")[1]
    if model.hides:
        empty = np.zeros(model.dim, np.float32)
        empty[:width] = filled(dnabert_s_of(stored), stored).embed([""])[0]
        return width, empty
    total, count = np.zeros(model.dim), 0
    for _, part in chain.from_iterable(source.parts() for source in sources):
        part = part[: USUAL - count]
        total += part.sum(axis=0, dtype=np.float64)
        count += len(part)
        if count == USUAL:
            break
    return width, (total / max(count, 1)).astype(np.float32)


class Halves:
    """A classifier's virus scores by one half of its input; the other half is hidden."""

    def __init__(self, classifier: MLPClassifier, width: int, hidden: Float32Array) -> None:
        self._classifier, self._width = classifier, width
        self._hidden = self._products(hidden[None])

    def scores(self, embeddings: Float32Array) -> Float32Array:
        """Embeddings (N, dim) → float32 (N, 2) by nucleotides alone and by protein alone.

        Costs what one more pass costs, for the first layer is linear. Rounded to four decimals.
        """
        nucleotide, protein = self._products(embeddings)
        no_nucleotide, no_protein = self._hidden
        alone = self._of(nucleotide + no_protein), self._of(no_nucleotide + protein)
        result: Float32Array = torch.stack(alone, 1).numpy().round(4)
        return result

    def _products(self, embeddings: Float32Array) -> tuple[Tensor, Tensor]:
        """What each half adds to the hidden layer (N, hidden)."""
        weight, whole = self._classifier.hidden_layer.weight, torch.from_numpy(embeddings)
        parts = slice(0, self._width), slice(self._width, None)
        nucleotide, protein = (F.linear(whole[:, part], weight[:, part]) for part in parts)
        return nucleotide, protein

    def _of(self, product: Tensor) -> Tensor:
        model = self._classifier
        active = F.relu(model.bn1(product + model.hidden_layer.bias))
        scores: Tensor = model.output_layer(active).softmax(1)[:, 1]
        return scores
