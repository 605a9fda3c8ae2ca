"""Which frames of a table one process embeds, in which batches, and their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from virnucpro_core.embedding.timing import Stages
from virnucpro_core.models.packing import plan
from virnucpro_core.parquet import frame_batches
from virnucpro_core.sequences.tokens import ESM_SPECIAL_TOKENS, Tokens

SLAB = 1 << 18
"""Frames that are sorted by length and held as text at once: it bounds memory, not speed."""

Rows = NDArray[np.int64]
Tokenize = Callable[[Sequence[str], Sequence[str]], tuple[Tokens, Tokens]]
"""Nucleotides and proteins of frames to the tokens of each encoder."""


class Batch(NamedTuple):
    """Rows of the frame table, int64 (B), with their nucleotide and their protein tokens."""

    rows: Rows
    nucleotide: Tokens
    protein: Tokens

    def halves(self) -> list[Batch]:
        """The first half of the frames, and the others."""
        half = len(self.rows) // 2
        rows = self.rows[:half], self.rows[half:]
        parts = zip(rows, self.nucleotide.halves(), self.protein.halves(), strict=True)
        return [Batch(*part) for part in parts]


def protein_tokens(frames: Path) -> Rows:
    """ESM-2 tokens of each frame of a table, int64 (N)."""
    parts = [
        pc.binary_length(batch["protein"]).to_numpy()
        for batch in frame_batches(frames, ["protein"])
    ]
    return np.concatenate([np.zeros(0, np.int64), *parts]) + ESM_SPECIAL_TOKENS


class Schedule:
    """One process's batches, slab by slab: the rows [rank::world] of each, longest first.

    Finished rows are taken out of a plan made of all rows, so that a run that was killed computes
    the same batches as an unbroken one. planned and kept count batches, frames what is left; tokens
    counts ESM-2's of all of them, tokens_kept those of finished ones.
    """

    def __init__(
        self, lengths: Rows, done: NDArray[np.bool_], token_budget: int, rank: int, world: int
    ) -> None:
        self._slabs: list[list[Rows]] = []
        self.planned = self.tokens = self.tokens_kept = 0
        for first in range(0, len(lengths), SLAB):
            order = np.argsort(-lengths[first : first + SLAB], kind="stable")
            mine = order[rank::world] + first
            batches = [mine[batch] for batch in plan(lengths[mine], token_budget)]
            self.planned += len(batches)
            self.tokens += int(lengths[mine].sum())
            self.tokens_kept += int(lengths[mine][done[mine]].sum())
            self._slabs.append([left for rows in batches if len(left := rows[~done[rows]])])
        self.kept = self.planned - sum(map(len, self._slabs))
        self.frames = sum(len(rows) for slab in self._slabs for rows in slab)

    def batches(self, frames: Path, tokenize: Tokenize, stages: Stages) -> Iterator[Batch]:
        """Read and tokenise the frames of a table, batch by batch."""
        texts = frame_batches(frames, ["nucleotide", "protein"], SLAB)
        for number, slab in enumerate(self._slabs):
            with stages("read"):
                text = next(texts)
            for rows in slab:
                with stages("read"):
                    part = text.take(pa.array(rows - number * SLAB))
                    bases, residues = (part[name].to_pylist() for name in part.schema.names)
                with stages("tokenise"):
                    batch = Batch(rows, *tokenize(bases, residues))
                yield batch
