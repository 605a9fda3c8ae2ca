"""Training batches: frames cut anew every epoch, with wrong letters and hidden tokens."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from virnucpro_core.heldout import Labelled
from virnucpro_core.results.calls import Float32Array
from virnucpro_core.sequences.fasta import Contig
from virnucpro_core.sequences.frames import stop_free_frames
from virnucpro_core.sequences.tokens import (
    ESM_BOS,
    ESM_EOS,
    ESM_MASK,
    NucleotideTokenizer,
    Tokens,
    esm_tokens,
)
from virnucpro_core.sequences.windows import Int64Array

SPECIAL_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
_MASK = SPECIAL_TOKENS.index("[MASK]")
BASES, RESIDUES = b"ACGT", b"ACDEFGHIKLMNPQRSTVWY"


def train_tokenizer(nucleotides: Sequence[str], vocabulary: int) -> Tokenizer:
    """Byte-pair encoding learned on sequences, in the form of DNABERT-S's."""
    tokenizer = Tokenizer(BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.train_from_iterator(
        nucleotides,
        BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=list("ACGT"),
            limit_alphabet=4,
            show_progress=False,
        ),
    )
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


class Frames(NamedTuple):
    """Stop-free frames, and whether their contig is viral, bool (N)."""

    nucleotide: list[str]
    protein: list[str]
    viral: NDArray[np.bool_]


def varied_frames(sample: Labelled, window: int, rng: np.random.Generator) -> Frames:
    """Frames of the contigs, cut anew: windows begin anywhere and are 0.6 to 1 window long.

    Reverse complements need no pass of their own, since frames are read off both strands.
    """
    nucleotide: list[str] = []
    protein: list[str] = []
    contigs: list[str] = []
    groups = rng.integers(0, 4, len(sample.contigs))
    for group in range(4):
        size = window if group < 2 else int(rng.integers(3 * window // 5, window + 1))
        cut = []
        for contig in (sample.contigs[i] for i in np.flatnonzero(groups == group)):
            start = int(rng.integers(0, max(1, min(size, len(contig.sequence) - size))))
            cut.append(Contig(contig.id, "", contig.sequence[start:]))
        frames = stop_free_frames(cut, size).to_pydict()
        nucleotide += frames["nucleotide"]
        protein += frames["protein"]
        contigs += frames["contig"]
    return Frames(nucleotide, protein, sample.is_viral(contigs))


class Composition:
    """What a text is made of: leading principal components of the counts of its k-letter words.

    Most of what tells viruses from bacteria in short sequences is in their words (hexamers and
    dipeptides), and whatever can be counted can be learned without labels.
    """

    def __init__(self, letters: bytes, k: int, texts: Sequence[str], components: int) -> None:
        self.code = np.full(256, -(len(letters) ** k), np.int64)
        self.code[list(letters)] = np.arange(len(letters))
        self.k, self.size = k, len(letters)
        roots = self._roots(texts)
        self.mean = roots.mean(0)
        spread = roots.std(0) + 1e-3
        scaled = torch.from_numpy((roots - self.mean) / spread)
        _, values, axes = torch.svd_lowrank(scaled, min(components, *scaled.shape), niter=2)
        # to unit variance; an axis that the texts do not vary along stays at 0
        unit = len(texts) ** 0.5 / values.where(values > 1e-3 * values[0], torch.inf)
        self.axes = (axes * unit).numpy() / spread[:, None]

    def _roots(self, texts: Sequence[str]) -> Float32Array:
        """Square roots of the words' shares: float32 (N, words)."""
        codes = self.code[np.frombuffer(" ".join([*texts, ""]).encode(), np.uint8)]
        words = np.zeros(max(0, len(codes) - self.k + 1), np.int64)
        for i in range(self.k):
            words = words * self.size + codes[i : i + len(words)]
        kinds = self.size**self.k
        row = np.repeat(np.arange(len(texts)), [len(text) + 1 for text in texts])[: len(words)]
        known = words >= 0
        counts = np.bincount(row[known] * kinds + words[known], minlength=len(texts) * kinds)
        counts = counts.reshape(-1, kinds)
        shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
        roots: Float32Array = np.sqrt(shares).astype(np.float32)
        return roots

    def __call__(self, texts: Sequence[str]) -> Float32Array:
        """Components of the texts, of unit variance where they were learned: float32 (N, C)."""
        components: Float32Array = (self._roots(texts) - self.mean) @ self.axes
        return components


def _noisy(
    texts: Sequence[str], letters: bytes, share: float, rng: np.random.Generator
) -> list[str]:
    """Replace up to twice `share` of each text's letters by random ones."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    joined = np.frombuffer("".join(texts).encode(), np.uint8).copy()
    rate = np.repeat(rng.uniform(0, 2 * share, len(texts)), lengths)
    hit = rng.random(len(joined)) < rate
    joined[hit] = rng.choice(np.frombuffer(letters, np.uint8), int(hit.sum()))
    whole = joined.tobytes().decode()
    return [whole[end - n : end] for n, end in zip(lengths, np.cumsum(lengths), strict=True)]


def _masked(
    tokens: Tokens, special: Sequence[int], mask: int, share: float, rng: np.random.Generator
) -> Tokens:
    """Hide up to twice `share` of each sequence's tokens."""
    rate = np.repeat(rng.uniform(0, 2 * share, len(tokens.lengths)), tokens.lengths)
    hide = (rng.random(len(tokens.ids)) < rate) & ~np.isin(tokens.ids, special)
    return Tokens(np.where(hide, mask, tokens.ids), tokens.lengths)


class Batch(NamedTuple):
    """Frames as the encoders take them, and the composition of their texts, float32 (B, C).

    viral: labels, int64 (B). weight: float32 (B), such that both classes count the same.
    """

    nucleotide: Tokens
    protein: Tokens
    composition: tuple[Float32Array, Float32Array]
    viral: Int64Array
    weight: Float32Array


@dataclass(frozen=True)
class Batches:
    """What batches of `batch` frames are made of; `noise` and `mask` are mean shares.

    The seed and an epoch's number determine its batches.
    """

    sample: Labelled
    window: int
    tokenize: NucleotideTokenizer
    words: tuple[Composition, Composition]
    batch: int
    noise: float
    mask: float
    seed: tuple[int, ...]

    def epoch(self, number: int) -> list[Batch]:
        """Batches of one set of `varied_frames`."""
        rng = np.random.default_rng([*self.seed, number])
        frames = varied_frames(self.sample, self.window, rng)
        order = rng.permutation(len(frames.viral))
        viral = frames.viral.astype(np.int64)
        weight = len(viral) / 2 / np.maximum(np.bincount(viral, minlength=2), 1)
        special = range(len(SPECIAL_TOKENS))
        result = []
        for at in range(0, max(1, len(order) - self.batch + 1), self.batch):
            rows = order[at : at + self.batch]
            bases = _noisy([frames.nucleotide[i] for i in rows], BASES, self.noise, rng)
            residues = _noisy([frames.protein[i] for i in rows], RESIDUES, self.noise, rng)
            result.append(
                Batch(
                    _masked(self.tokenize(bases), special, _MASK, self.mask, rng),
                    _masked(esm_tokens(residues), (ESM_BOS, ESM_EOS), ESM_MASK, self.mask, rng),
                    (self.words[0](bases), self.words[1](residues)),
                    viral[rows],
                    weight[viral[rows]].astype(np.float32),
                )
            )
        return result

    def stream(self, workers: int) -> Generator[Batch, None, None]:
        """Batches without end: made here, or ahead by so many processes, to the same result."""
        if not workers:
            for number in count():
                yield from self.epoch(number)
        # forked, since a spawned one would import the caller's script; it leaves CUDA alone
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"))
        try:
            ready: deque[Future[list[Batch]]] = deque()
            for number in count():
                ready.append(pool.submit(self.epoch, number))
                if len(ready) > workers:
                    yield from ready.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
