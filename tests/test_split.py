"""How large a piece is, where nobody says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virnucpro_core.sequences.split import auto_shard_bp


def file_of(folder: Path, name: str, size: float) -> Path:
    path = folder / name
    path.touch()
    os.truncate(path, int(size))  # sparse
    return path


@pytest.mark.parametrize(
    ("size", "bases"),
    [(100e9, 81e6), (200e6, 50e6), (1e6, 8.1e6)],
    ids=["large: 10 minutes", "a quarter of it", "small: a tenth of that"],
)
def test_auto_shard_bp_by_size(size: float, bases: float, tmp_path: Path) -> None:
    fasta = file_of(tmp_path, "in.fa", size)
    assert auto_shard_bp([fasta], "virnucpro-500", "a100") == pytest.approx(bases, rel=0.01)


def test_auto_shard_bp_takes_compressed_files_four_times(tmp_path: Path) -> None:
    plain, packed = file_of(tmp_path, "in.fa", 2e8), file_of(tmp_path, "in.fa.gz", 5e7)
    sizes = [auto_shard_bp([path], "virnucpro-500", "a100") for path in (plain, packed)]
    assert sizes[0] == sizes[1]


def test_auto_shard_bp_follows_device_and_model_within_bounds(tmp_path: Path) -> None:
    fasta = [file_of(tmp_path, "in.fa", 1e12)]
    assert auto_shard_bp(fasta, "virnucpro-500", "t4") < auto_shard_bp(fasta, "mine", "a100")
    assert auto_shard_bp(fasta, "virnucpro-300", "h100") < auto_shard_bp(fasta, "mine", "h100")
    assert auto_shard_bp(fasta, "virnucpro-300", "cpu") == 100_000
    assert auto_shard_bp(fasta, "mini", "h100") == 250_000_000
    assert auto_shard_bp([tmp_path / "absent"], "mini", "cpu") == 3_000_000
