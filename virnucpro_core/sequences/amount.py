"""How much work contigs are, counted without doing it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from virnucpro_core.sequences.fasta import read_fasta
from virnucpro_core.sequences.frames import batches, frame_parts
from virnucpro_core.sequences.pace import about_bases
from virnucpro_core.sequences.tokens import ESM_SPECIAL_TOKENS
from virnucpro_core.sequences.translate import by_code
from virnucpro_core.sequences.windows import window_counts

SAMPLE = 20_000_000
"""Bases that are translated, about: of a larger input every n-th batch, which is a second."""


class Amount(NamedTuple):
    """Counts of an input. tokens: ESM-2's, of all frames.

    exact: frames and tokens were counted, not scaled up from a sample.
    """

    contigs: int
    bases: int
    windows: int
    frames: int
    tokens: int
    exact: bool

    def __str__(self) -> str:
        about = "" if self.exact else "about "
        return (
            f"{self.contigs:,} contigs, {self.bases:,} bases, {self.windows:,} windows; "
            f"{about}{self.frames:,} frames, {about}{self.tokens:,} tokens"
        )


def amount_of(fasta: Sequence[Path], window: int, *, code: str = "1", runs: bool = False) -> Amount:
    """Count the windows of FASTA files, and of a sample spread over them the frames.

    Reads them once, to their end. code, runs: as of `translate`. Raises InputError as `read_fasta`
    does.
    """
    every = max(1, about_bases(fasta) // SAMPLE)
    contigs = bases = windows = seen = frames = residues = 0
    for number, batch in enumerate(batches(read_fasta(fasta))):
        lengths = np.array([len(contig.sequence) for contig in batch])
        contigs += len(batch)
        bases += int(lengths.sum())
        windows += int(window_counts(lengths, window).sum())
        if number % every == 0:
            seen += int(window_counts(np.minimum(lengths, SAMPLE), window).sum())
            cut = [contig._replace(sequence=contig.sequence[:SAMPLE]) for contig in batch]
            for own, alike in by_code(cut, code):
                for table in frame_parts(alike, window, code=own, runs=runs):
                    frames += table.num_rows
                    residues += pc.sum(pc.binary_length(table["protein"])).as_py() or 0
    scale = windows / max(1, seen)
    tokens = residues + ESM_SPECIAL_TOKENS * frames
    exact = seen == windows
    return Amount(contigs, bases, windows, round(frames * scale), round(tokens * scale), exact)
