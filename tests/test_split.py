"""How large a piece is, where nobody says so, and what memory one needs."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from virnucpro_core.errors import InputError
from virnucpro_core.inputs import RECORD, identify
from virnucpro_core.parquet import cut_from, inventory_batches
from virnucpro_core.sequences.pace import auto_shard_bp
from virnucpro_core.sequences.split import split


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


MEASURED = """
import resource, sys
from pathlib import Path
from virnucpro_core.parquet import inventory_batches
from virnucpro_core.sequences.split import split
from virnucpro_core.sequences.translate import translate

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

fasta, out = map(Path, sys.argv[1:])
translate([Path(sys.argv[1] + ".small")], out / "small.parquet", 500)
split([Path(sys.argv[1] + ".small")], out / "small", 10**9)
before = peak()
pieces = split([fasta], out / "split", 10**9)
translate(pieces, out / "frames.parquet", 500)
for batch in inventory_batches(out / "split/contigs.parquet"):
    pass
print(len(pieces), peak() - before)
"""


@pytest.mark.parametrize(("contigs", "size", "most"), [(160, 500_000, 0.5), (1, 80_000_000, 4)])
def test_split_and_translate_memory_does_not_grow_with_a_piece(
    contigs: int, size: int, most: float, tmp_path: Path
) -> None:
    bases = random.Random(0).randbytes(size).translate(b"ACGT" * 64)
    for name, number in (("in.fa", contigs), ("in.fa.small", 1)):
        with (tmp_path / name).open("wb") as handle:
            for n in range(number):
                handle.write(b">c%d\n%s\n" % (n, bases if name == "in.fa" else bases[:2_000_000]))
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "in.fa"), str(tmp_path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    pieces, grown = map(int, said.split())
    assert pieces == 1
    assert grown < most * contigs * size, f"{grown / 1e6:.0f} MB"


def test_split_row_groups_of_the_inventory_are_bound_by_bases(tmp_path: Path) -> None:
    (tmp_path / "in.fa").write_text("".join(f">c{n}\n{'ACGT' * 250_000}\n" for n in range(7)))
    pieces = split([tmp_path / "in.fa"], tmp_path / "split", 5_000_000)
    inventory = tmp_path / "split/contigs.parquet"
    assert [batch.num_rows for batch in inventory_batches(inventory)] == [2, 2, 1, 2]
    assert pq.read_table(inventory)["piece"].to_pylist() == [1] * 5 + [2] * 2
    assert [path.read_text().count(">") for path in pieces] == [5, 2]


def test_auto_shard_bp_takes_compressed_files_four_times(tmp_path: Path) -> None:
    plain, packed = file_of(tmp_path, "in.fa", 2e8), file_of(tmp_path, "in.fa.gz", 5e7)
    sizes = [auto_shard_bp([path], "virnucpro-500", "a100") for path in (plain, packed)]
    assert sizes[0] == sizes[1]


def test_auto_shard_bp_follows_device_and_model_within_bounds(tmp_path: Path) -> None:
    fasta = [file_of(tmp_path, "in.fa", 1e12)]
    assert auto_shard_bp(fasta, "virnucpro-500", "t4") < auto_shard_bp(fasta, "mine", "a100")
    assert auto_shard_bp(fasta, "virnucpro-300", "h100") < auto_shard_bp(fasta, "mine", "h100")
    assert auto_shard_bp(fasta, "virnucpro-300", "cpu") < 200_000
    assert auto_shard_bp(fasta, "mini", "h100") == 250_000_000
    assert auto_shard_bp([tmp_path / "absent"], "mini", "cpu") == 30_000_000
    assert auto_shard_bp([tmp_path / "absent"], "virnucpro-500", "cpu") == 100_000


def test_split_stopped_right_after_a_piece_leaves_nothing_and_goes_on(
    edge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(folder: Path) -> None:
        if list(folder.glob("piece_*.fasta")):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("virnucpro_core.files.sync_folder", stop)
        with pytest.raises(KeyboardInterrupt):
            split([edge], tmp_path / "out", 9000)
    assert not (tmp_path / "out").exists()
    assert len(split([edge], tmp_path / "out", 9000)) > 2


@pytest.mark.parametrize(
    ("lengths", "shard_bp", "pieces"),
    [
        ([4, 3, 2, 5, 4, 6, 9, 1, 1], 10, [4, 2, 2, 1]),
        ([10, 10, 25, 1], 10, [1, 1, 1, 1]),
        ([9_999_999, 5, 3], None, [2, 1]),
    ],
)
def test_split_begins_a_piece_where_the_last_has_its_bases(
    lengths: list[int], shard_bp: int | None, pieces: list[int], tmp_path: Path
) -> None:
    fasta = tmp_path / "in.fa"
    fasta.write_text("".join(f">{n}\n{'A' * length}\n" for n, length in enumerate(lengths)))
    out = tmp_path / "out"
    cut = split([fasta], out, shard_bp) if shard_bp else split([fasta], out)
    assert [path.read_text().count(">") for path in cut] == pieces


def test_split_again_into_fewer_pieces_leaves_none_of_the_former(tmp_path: Path) -> None:
    fasta = tmp_path / "in.fa"
    fasta.write_text(">a\nACGT\n>b\nACGT\n>c\nACGT\n")
    assert len(split([fasta], tmp_path / "out", 4)) == 3
    assert split([fasta], tmp_path / "out", 8) == sorted((tmp_path / "out").glob("piece_*"))


@pytest.mark.parametrize("gone", [RECORD, "piece_00001.fasta", None])
def test_split_over_pieces_of_another_input_is_refused_also_where_one_file_is_gone(
    gone: str | None, tmp_path: Path
) -> None:
    for name in ("old", "new"):
        (tmp_path / name).write_text(f">{name}\nACGT\n")
    out = tmp_path / "out"
    (piece,) = split([tmp_path / "old"], out)
    assert split([tmp_path / "old"], out) == [piece], "the same input is cut again"
    if gone:
        (out / gone).unlink()
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    with pytest.raises(InputError, match="holds the pieces of another input"):
        split([tmp_path / "new"], out)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    assert after == before
    split([tmp_path / "new"], out, force=True)
    assert piece.read_text() == ">new\nACGT\n"


def test_split_says_how_many_contigs_and_of_which_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "virnucpro.split")
    fasta = tmp_path / "in.fa"
    fasta.write_text(">a\nACGT\n>b\nACGT\n>c\nACGT\n")
    split([fasta], tmp_path / "out", 8)
    assert caplog.messages == ["3 contigs in 2 pieces"]
    assert cut_from(tmp_path / "out/contigs.parquet") == identify([fasta])
