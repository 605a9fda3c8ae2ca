"""Training batches: frames of windows drawn anew for each, with wrong letters and hidden tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch.utils.data import DataLoader, Dataset

from virnucpro_core.lab.corpus import Codes, Corpus, letters
from virnucpro_core.sequences.codes import codon_residues
from virnucpro_core.sequences.tokens import (
    ESM_BOS,
    ESM_EOS,
    ESM_MASK,
    RESIDUE,
    NucleotideTokenizer,
    Tokens,
)
from virnucpro_core.sequences.windows import Int64Array

SPECIAL_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
_MASK = SPECIAL_TOKENS.index("[MASK]")
_STOP = 255
_AMINO = np.full(64, _STOP, np.uint8)
for _codon in range(64):
    _byte = codon_residues(1)[0][_codon // 16 * 25 + _codon // 4 % 4 * 5 + _codon % 4]
    _AMINO[_codon] = _STOP if _byte == ord("*") else RESIDUE[_byte]

BoolArray = NDArray[np.bool_]


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


def residues(strand: Codes, shift: int) -> Codes:
    """ESM's ids of the codons of windows (N, W) from base `shift`, uint8 (N, codons); 255: stop."""
    span = max(0, strand.shape[1] - shift) // 3 * 3
    first, second, third = (strand[:, shift + i : shift + span : 3] for i in range(3))
    ids: Codes = _AMINO[16 * first + 4 * second + third]
    return ids


class Reading(NamedTuple):
    """What was read of some windows.

    window: their numbers. bases: (N, W), what the nucleotide encoder gets. residues: ids of the
    codons from base `shift` on, (N, R), with those of stops. run: the codons [begin, end) that the
    protein encoder gets, (N, 2).
    """

    window: Int64Array
    bases: Codes
    shift: int
    residues: Codes
    run: Int64Array


def longest_run(ids: Codes) -> Int64Array:
    """The first longest run [begin, end) of each row without a stop: int64 (N, 2)."""
    at = np.arange(1, ids.shape[1] + 1)
    length = at - np.maximum.accumulate(np.where(ids == _STOP, at, 0), axis=1)
    if not ids.shape[1]:
        return np.zeros((len(ids), 2), np.int64)
    last = length.argmax(1)
    return np.stack([last + 1 - length[np.arange(len(ids)), last], last + 1], 1)


def read_frames(
    windows: Codes, rng: np.random.Generator, closed_share: float = 1.0
) -> Iterator[Reading]:
    """One stop-free frame of each window (N, W), at random; of one without any, its longest run.

    Both are `stop_free_frames`'s. Of the windows without any, a share is read at all.
    """
    number, width = windows.shape
    strands = (windows, 3 - windows[:, ::-1])
    readings = [(strand, f, residues(strand, f)) for strand in strands for f in range(3)]
    is_open = np.stack([(r != _STOP).all(1) & (r.shape[1] > 0) for _, _, r in readings], 1)
    chosen = (rng.random((number, 6)) * is_open).argmax(1)
    closed = np.flatnonzero(~is_open.any(1))
    closed = closed[rng.random(len(closed)) < closed_share]
    runs = np.stack([longest_run(ids[closed]) for _, _, ids in readings], 1)
    length = runs[..., 1] - runs[..., 0]
    chosen[closed] = length.argmax(1)
    run_of = np.zeros((number, 2), np.int64)
    run_of[closed] = runs[np.arange(len(closed)), chosen[closed]]
    for frame, (strand, shift, ids) in enumerate(readings):
        at = np.flatnonzero(is_open.any(1) & (chosen == frame))
        end = min(width, shift + 3 * ids.shape[1] + 1)
        whole = np.tile([0, ids.shape[1]], (len(at), 1))
        yield Reading(at, strand[at, shift:end], 0, ids[at], whole)
        at = closed[(chosen[closed] == frame) & (length.max(1) > 0)]
        yield Reading(at, strand[at], shift, ids[at], run_of[at])


def _mutated(reading: Reading, share: float, rng: np.random.Generator) -> Reading:
    """Replace up to twice `share` of each row's bases, but by none that makes a stop codon."""
    bases, old = reading.bases, reading.residues
    hit = rng.random(bases.shape, np.float32) < rng.uniform(0, 2 * share, (len(bases), 1))
    new = np.where(hit, rng.integers(0, 4, bases.shape, np.uint8), bases)
    coding = slice(reading.shift, reading.shift + 3 * old.shape[1])
    stops = (residues(new[:, coding], 0) == _STOP) | (old == _STOP)
    new[:, coding] = np.where(np.repeat(stops, 3, axis=1), bases[:, coding], new[:, coding])
    return reading._replace(bases=new, residues=residues(new[:, coding], 0))


class Masked(NamedTuple):
    """Packed tokens as the encoder gets them: ids, int16 (T), and lengths, int64 (B).

    at: where tokens are hidden, int64. truth: what they were, int64.
    """

    ids: NDArray[np.int16]
    lengths: Int64Array
    at: Int64Array
    truth: Int64Array


def _masked(
    tokens: Tokens, special: Sequence[int], mask: int, share: float, rng: np.random.Generator
) -> Masked:
    """Hide up to twice `share` of each sequence's tokens."""
    rate = np.repeat(rng.uniform(0, 2 * share, len(tokens.lengths)), tokens.lengths)
    hide = (rng.random(len(tokens.ids)) < rate) & ~np.isin(tokens.ids, special)
    ids = np.where(hide, mask, tokens.ids).astype(np.int16)
    at = np.flatnonzero(hide)
    return Masked(ids, tokens.lengths, at, tokens.ids[at])


class Batch(NamedTuple):
    """Frames as the encoders take them; of a half that is hidden, the special tokens alone.

    viral: labels, int64 (B). kind: indices into the corpus's kinds, int64 (B); −1: made up.
    """

    nucleotide: Masked
    protein: Masked
    viral: Int64Array
    kind: Int64Array


@dataclass(frozen=True)
class Augmentation:
    """How windows become examples, see `mini.toml`; all numbers are shares or mean shares."""

    noise: float
    mask: float
    hide_nucleotide: float
    hide_protein: float
    hide_run: float
    closed: float
    shuffled: float


@dataclass(frozen=True)
class Batches(Dataset[Batch]):
    """Batches of about `size` frames; the seed and a batch's number determine it."""

    corpus: Corpus
    window: int
    tokenize: NucleotideTokenizer
    size: int
    augmentation: Augmentation
    seed: int

    @cached_property
    def _edges(self) -> NDArray[np.float64]:
        edges: NDArray[np.float64] = np.cumsum(self.corpus.chances("training"))
        return edges

    def _widths(self, rng: np.random.Generator) -> list[tuple[int, int, float]]:
        """Numbers of windows, their width and how many times more of them are shuffled: two in
        three as in use, the others of a few widths each, down to a few codons."""
        count = int(self.size * 1.3)
        short = [int(width) for width in rng.uniform(0.2 * self.window, self.window, 4)]
        least = [int(width) for width in np.exp(rng.uniform(np.log(9), np.log(self.window), 4))]
        return [
            (count * 2 // 3, self.window, 1.0),
            *((count // 18, max(9, width), 1.0) for width in short),
            *((count // 36, width, 5.0) for width in least),
        ]

    def __getitem__(self, number: int) -> Batch:
        """The batch of a number."""
        rng = np.random.default_rng([self.seed, number])
        corpus, how = self.corpus, self.augmentation
        texts: list[str] = []
        proteins: list[Codes] = []
        kinds: list[int] = []
        runs: list[bool] = []
        for count, width, times in self._widths(rng):
            drawn = np.searchsorted(self._edges, rng.random(count) * self._edges[-1], "right")
            drawn = drawn[corpus.length[drawn] >= width]
            begin = (rng.random(len(drawn)) * (corpus.length[drawn] - width + 1)).astype(np.int64)
            windows = corpus.windows(drawn, begin, width)
            kind = corpus.kind[drawn]
            mixed = rng.random(len(drawn)) < how.shuffled * times
            windows[mixed] = rng.permuted(windows[mixed], axis=1)
            kind[mixed] = -1
            for reading in read_frames(windows, rng, how.closed):
                reading = _mutated(reading, how.noise, rng)
                text = letters(reading.bases).decode()
                size = reading.bases.shape[1]
                texts += [text[i * size : (i + 1) * size] for i in range(len(reading.window))]
                both = zip(reading.residues, reading.run, strict=True)
                proteins += [ids[begin:end] for ids, (begin, end) in both]
                kinds += kind[reading.window].tolist()
                runs += (np.diff(reading.run)[:, 0] < reading.residues.shape[1]).tolist()
        order = rng.permutation(len(texts))[: self.size]
        lot, is_run = rng.random(len(order)), np.array(runs, np.bool_)[order]
        hide_bases = (lot < how.hide_nucleotide) & ~is_run
        hide_protein = lot > 1 - np.where(is_run, how.hide_run, how.hide_protein)
        bases = ["" if hide else texts[i] for i, hide in zip(order, hide_bases, strict=True)]
        none = np.empty(0, np.uint8)
        chains = [
            none if hide else proteins[i] for i, hide in zip(order, hide_protein, strict=True)
        ]
        kind = np.array(kinds, np.int64)[order]
        viral = (corpus.viral[kind] & (kind >= 0)).astype(np.int64)
        special = range(len(SPECIAL_TOKENS))
        return Batch(
            _masked(self.tokenize(bases), special, _MASK, how.mask, rng),
            _masked(_chain_tokens(chains), (ESM_BOS, ESM_EOS), ESM_MASK, how.mask, rng),
            viral,
            kind,
        )

    def stream(self, steps: int, workers: int) -> Iterator[Batch]:
        """Batches 0 to `steps` − 1: made here, or ahead by so many processes, to the same result.

        A worker is forked, shares the corpus, and has one thread: a pool each would thrash.
        """
        _ = self._edges  # before the fork, once
        return iter(
            DataLoader(
                self,
                batch_size=None,
                sampler=range(steps),
                num_workers=workers,
                collate_fn=_as_it_is,
                prefetch_factor=4 if workers else None,
                multiprocessing_context="fork" if workers else None,
            )
        )


def _as_it_is(batch: Any) -> Any:
    return batch


def _chain_tokens(chains: Sequence[Codes]) -> Tokens:
    """ESM's tokens of proteins given as ids."""
    lengths = np.fromiter(map(len, chains), np.int64, len(chains)) + 2
    ends = np.cumsum(lengths)
    ids = np.full(int(ends[-1]), ESM_EOS, np.int64)
    ids[ends - lengths] = ESM_BOS
    inside = np.ones(len(ids), np.bool_)
    inside[ends - 1] = inside[ends - lengths] = False
    ids[inside] = np.concatenate(chains)
    return Tokens(ids, lengths)
