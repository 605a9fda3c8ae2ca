"""What a process is to embed: how long its frames are, and a batch that finds no room, in two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from virnucpro_core.embedding.schedule import Batch, protein_tokens
from virnucpro_core.sequences.tokens import Tokens


def test_protein_tokens_are_the_residues_between_a_first_and_a_last(edge_frames: Path) -> None:
    residues = pq.read_table(edge_frames)["protein"].to_pylist()
    assert protein_tokens(edge_frames).tolist() == [1 + len(text) + 1 for text in residues]


def test_halves_of_a_batch_part_rows_and_both_kinds_of_tokens_alike() -> None:
    nucleotide = Tokens(np.arange(25), np.array([3, 4, 5, 6, 7]))
    protein = Tokens(np.arange(15), np.array([1, 2, 3, 4, 5]))
    first, others = Batch(np.array([9, 8, 7, 6, 5]), nucleotide, protein).halves()
    assert (first.rows.tolist(), others.rows.tolist()) == ([9, 8], [7, 6, 5])
    assert [half.nucleotide.lengths.tolist() for half in (first, others)] == [[3, 4], [5, 6, 7]]
    assert [half.protein.lengths.tolist() for half in (first, others)] == [[1, 2], [3, 4, 5]]
