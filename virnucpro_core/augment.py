"""Training batches: frames cut anew every epoch, with wrong letters and hidden tokens."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from virnucpro_core.heldout import Labelled
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

SPECIAL_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
_MASK = SPECIAL_TOKENS.index("[MASK]")
_BASES = np.frombuffer(b"ACGT", np.uint8)
_RESIDUES = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)

T = TypeVar("T")
Int64Array = NDArray[np.int64]


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


def _noisy(
    texts: Sequence[str], letters: NDArray[np.uint8], share: float, rng: np.random.Generator
) -> list[str]:
    """Replace up to twice `share` of each text's letters by random ones."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    joined = np.frombuffer("".join(texts).encode(), np.uint8).copy()
    rate = np.repeat(rng.uniform(0, 2 * share, len(texts)), lengths)
    hit = rng.random(len(joined)) < rate
    joined[hit] = rng.choice(letters, int(hit.sum()))
    whole = joined.tobytes().decode()
    return [whole[end - n : end] for n, end in zip(lengths, np.cumsum(lengths), strict=True)]


def _masked(
    tokens: Tokens, special: Sequence[int], mask: int, share: float, rng: np.random.Generator
) -> tuple[Tokens, Int64Array]:
    """Hide up to twice `share` of each sequence's tokens; also the true ids, −1 where seen."""
    rate = np.repeat(rng.uniform(0, 2 * share, len(tokens.lengths)), tokens.lengths)
    hide = (rng.random(len(tokens.ids)) < rate) & ~np.isin(tokens.ids, special)
    hidden = Tokens(np.where(hide, mask, tokens.ids), tokens.lengths)
    return hidden, np.where(hide, tokens.ids, -1)


class Batch(NamedTuple):
    """Frames as the encoders take them: tokens, and the true ids of the hidden ones (else −1).

    viral: labels, int64 (B). weight: float32 (B), such that both classes count the same.
    """

    nucleotide: Tokens
    nucleotide_truth: Int64Array
    protein: Tokens
    protein_truth: Int64Array
    viral: Int64Array
    weight: NDArray[np.float32]


@dataclass(frozen=True)
class Batches:
    """What batches of `batch` frames are made of; `noise` and `mask` are mean shares."""

    sample: Labelled
    window: int
    tokenize: NucleotideTokenizer
    batch: int
    noise: float
    mask: float

    def stream(self, rng: np.random.Generator) -> Iterator[Batch]:
        """Batches without end, epoch after epoch of `varied_frames`."""
        while True:
            frames = varied_frames(self.sample, self.window, rng)
            order = rng.permutation(len(frames.viral))
            viral = frames.viral.astype(np.int64)
            balance = len(viral) / 2 / np.maximum(np.bincount(viral, minlength=2), 1)
            for at in range(0, max(1, len(order) - self.batch + 1), self.batch):
                rows = order[at : at + self.batch]
                bases = _noisy([frames.nucleotide[i] for i in rows], _BASES, self.noise, rng)
                residues = _noisy([frames.protein[i] for i in rows], _RESIDUES, self.noise, rng)
                special = range(len(SPECIAL_TOKENS))
                yield Batch(
                    *_masked(self.tokenize(bases), special, _MASK, self.mask, rng),
                    *_masked(esm_tokens(residues), (ESM_BOS, ESM_EOS), ESM_MASK, self.mask, rng),
                    viral[rows],
                    balance[viral[rows]].astype(np.float32),
                )


def ahead(items: Iterator[T], depth: int = 8) -> Generator[T, None, None]:
    """Make the items of an endless iterator in a thread, until this one is closed."""
    ready: queue.Queue[T | BaseException] = queue.Queue(depth)
    closed = threading.Event()

    def produce() -> None:
        try:
            for item in items:
                ready.put(item)
                if closed.is_set():
                    return
        except BaseException as error:
            ready.put(error)

    threading.Thread(target=produce, daemon=True).start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        while not ready.empty():
            ready.get_nowait()
