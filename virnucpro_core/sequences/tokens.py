"""Sequences to token ids, packed one after another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from virnucpro_core.errors import InputError, ModelError
from virnucpro_core.files import blame_machine
from virnucpro_core.reading import read_small

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
"""One thread keeps ahead of a GPU; a pool for want of memory panics, aborts or is waited for."""


class Tokens(NamedTuple):
    """Packed token ids, int64 (T), and the token count of each sequence, int64 (B)."""

    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def halves(self) -> tuple[Tokens, Tokens]:
        """The first half of the sequences, and the others."""
        half = len(self.lengths) // 2
        at = int(self.lengths[:half].sum())
        first, others = (self.ids[:at], self.lengths[:half]), (self.ids[at:], self.lengths[half:])
        return Tokens(*first), Tokens(*others)


ESM_ALPHABET = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"LAGVSERTIDPKQNFYMHWCXBUZO.-",
    *("<null_1>", "<mask>"),
)
"""fair-esm's "ESM-1b" alphabet (esm/data.py, esm/constants.py), in the order of the ids."""

ESM_SPECIAL_TOKENS = 2
"""Of each protein: `<cls>` and `<eos>`."""

ESM_BOS, ESM_EOS, ESM_MASK = (ESM_ALPHABET.index(t) for t in ("<cls>", "<eos>", "<mask>"))
_MASK = "\x01"
RESIDUE = np.full(256, -1, np.int64)
for _id, _token in enumerate(ESM_ALPHABET):
    if len(_token) == 1:
        RESIDUE[ord(_token)] = _id
RESIDUE[ord(_MASK)] = ESM_MASK


def esm_tokens(proteins: Sequence[str]) -> Tokens:
    """Tokenise proteins for ESM-2: `<cls>`, residues (a `<mask>` counts as one), `<eos>`.

    Raises InputError for a letter that is no residue of ESM's alphabet.
    """
    texts = [p.replace("<mask>", _MASK).encode("ascii", "replace") for p in proteins]
    lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + ESM_SPECIAL_TOKENS
    ends = np.cumsum(lengths)
    residues = RESIDUE[np.frombuffer(b"".join(texts), np.uint8)]
    if -1 in residues:
        own = np.cumsum(lengths - ESM_SPECIAL_TOKENS)
        bad = proteins[int(np.searchsorted(own, residues.argmin(), "right"))]
        raise InputError(
            f"protein {bad[:20]!r}… has a letter that ESM-2 does not know; "
            "give residues in upper case, without stops."
        )
    ids = np.empty(int(lengths.sum()), np.int64)
    special = np.zeros(len(ids), np.bool_)
    special[ends - lengths] = special[ends - 1] = True
    ids[~special] = residues
    ids[ends - lengths], ids[ends - 1] = ESM_BOS, ESM_EOS
    return Tokens(ids, lengths)


@contextmanager
def _blamed(path: Path) -> Iterator[None]:
    """ModelError for what tokenizers raises: Exception for whatever is wrong, and Rust's panics."""
    try:
        yield
    except BaseException as error:
        blame_machine(error, path)
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ModelError(
                f"{path}: no readable tokenizer ({error}); fetch the model again."
            ) from None
        raise


class NucleotideTokenizer:
    """DNABERT's byte-pair encoding, read from a Hugging Face `tokenizer.json`.

    vocabulary: the number of ids that the encoder knows, where one is to be fed. Raises ModelError
    for a file that is no tokenizer or gives other ids, when it is read or when it is used.
    """

    def __init__(self, path: Path, vocabulary: int | None = None) -> None:
        self._path, self._vocabulary = path, vocabulary
        content = read_small(path)
        with _blamed(path):
            self._tokenizer = Tokenizer.from_buffer(content)
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
        self(["ACGTN"])

    def __call__(self, sequences: Sequence[str]) -> Tokens:
        """Tokenise nucleotide sequences: `[CLS]`, byte pairs, `[SEP]`."""
        with _blamed(self._path):
            ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(sequences))]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        packed = np.fromiter((i for row in ids for i in row), np.int64, int(lengths.sum()))
        if not lengths.all() or (self._vocabulary and packed.max(initial=0) >= self._vocabulary):
            raise ModelError(
                f"{self._path}: gives no ids, or one beyond the encoder's {self._vocabulary}; "
                "fetch the model again."
            )
        return Tokens(packed, lengths)
