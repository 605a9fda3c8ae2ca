"""Windows and frames: equality with the original's output, and with its rules read plainly."""

from __future__ import annotations

import gzip
import logging
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from Bio.Data.CodonTable import unambiguous_dna_by_id
from Bio.Seq import Seq

from virnucpro_core.errors import InputError
from virnucpro_core.parquet import frame_meta
from virnucpro_core.schema import FRAMES
from virnucpro_core.sequences.fasta import Contig
from virnucpro_core.sequences.frames import FRAME_NAMES, batches, frame_parts, stop_free_frames
from virnucpro_core.sequences.translate import frame_table, translate
from virnucpro_core.sequences.windows import window_starts, windows


def _content(path: Path) -> bytes:
    packed = path.with_name(f"{path.name}.gz")
    return gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()


def _assert_as_the_original(fasta: Path, window: int, out: Path) -> None:
    translate([fasta], out / "frames.parquet", window, fasta_dir=out)
    name = fasta.name.split(".")[0]
    for ours, theirs in (
        (f"chunked{window}.fa", f"{name}.chunked{window}.fa"),
        ("identified_nucleotide.fa", f"{name}.{window}.identified_nucleotide.fa"),
        ("identified_protein.faa", f"{name}.{window}.identified_protein.faa"),
    ):
        assert (out / ours).read_bytes() == _content(fasta.with_name(theirs)), ours


@pytest.mark.parametrize("window", [300, 500])
def test_translate_edge_cases_equals_the_original(edge: Path, window: int, tmp_path: Path) -> None:
    _assert_as_the_original(edge, window, tmp_path)


@pytest.mark.parametrize("window", [300, 500])
def test_translate_crassphage_equals_the_original(
    shared: Path, window: int, tmp_path: Path
) -> None:
    fasta = shared / "reference" / "original" / "crAssphage.fa.gz"
    _assert_as_the_original(fasta, window, tmp_path)


@pytest.mark.parametrize("window", [3, 7, 300, 500])
def test_windows_any_length_cover_the_contig_by_the_published_rule(window: int) -> None:
    for length in (*range(1, 60), *range(window - 3, 8 * window, max(1, window // 37))):
        if length < 1:
            continue
        n = -(-length // window)
        surplus = n * window - length
        q = surplus // n
        longer = min(n - 1, surplus - q * (n - 1))
        starts = [k * window - (k * q + min(k, longer)) for k in range(n)]
        assert window_starts(length, window).tolist() == starts
        assert starts[0] == 0
        _, start, end = windows(np.array([length]), window)
        assert end[-1] == length
        assert (start[1:] <= end[:-1]).all(), "no base is left out"


def _plain_frames(contig: Contig, window: int, code: int = 1) -> list[tuple[object, ...]]:
    """The rules of the design, record by record."""
    table = unambiguous_dna_by_id[code]
    rows: list[tuple[object, ...]] = []
    for number, start in enumerate(window_starts(len(contig.sequence), window).tolist(), 1):
        bases = contig.sequence[start : start + window].decode().upper()
        flipped = bases.translate(str.maketrans("ACGT", "TGCA"))[::-1]
        for strand, text in (("F", bases), ("R", flipped)):
            for f in (1, 2, 3):
                codons = [text[i : i + 3] for i in range(f - 1, len(text) - 2, 3)]
                protein = "".join(
                    "*" if codon in table.stop_codons else table.forward_table.get(codon, "")
                    for codon in codons
                )
                if not protein or "*" in protein:
                    continue
                nucleotide = text[f - 1 : f + 3 * len(protein)]
                at = f - 1 if strand == "F" else len(text) - (f - 1) - len(nucleotide)
                rows.append(
                    (
                        f"{contig.id}_chunk_{number}{strand}{f}",
                        contig.id,
                        number,
                        f"{strand}{f}",
                        start + at,
                        start + at + len(nucleotide),
                        nucleotide,
                        protein,
                    )
                )
    return rows


def _random_contigs(letters: str, seed: int) -> list[Contig]:
    rng = random.Random(seed)
    lengths = [*range(8), *(rng.randrange(1, 400) for _ in range(120))]
    return [
        Contig(f"c{n}", "", "".join(rng.choices(letters, k=length)).encode())
        for n, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("letters", ["ACGT", "ACGTacgtN", "GCC" * 20 + "N", "ACGTRYKMSWBDHVN-"])
@pytest.mark.parametrize("window", [30, 101])
@pytest.mark.parametrize("bases", [1, 200, 2_000_000])
def test_stop_free_frames_random_contigs_equal_a_plain_reading_of_the_rules(
    letters: str, window: int, bases: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virnucpro_core.sequences.frames.BATCH_BASES", bases)  # of a part: twice
    contigs = _random_contigs(letters, seed=window)
    expected = [row for contig in contigs for row in _plain_frames(contig, window)]
    table = stop_free_frames(contigs, window)
    assert [tuple(row.values()) for row in table.to_pylist()] == expected
    assert table.schema == FRAMES


@pytest.mark.parametrize("code", [4, 6, 15, 23])
def test_stop_free_frames_another_code_equal_a_plain_reading_by_it(code: int) -> None:
    contigs = _random_contigs("ACGTacgtN", seed=code)
    expected = [row for contig in contigs for row in _plain_frames(contig, 60, code)]
    table = stop_free_frames(contigs, 60, code=code)
    assert [tuple(row.values()) for row in table.to_pylist()] == expected
    assert table != stop_free_frames(contigs, 60)


def test_stop_free_frames_start_and_end_cut_the_nucleotides_out_of_the_contig() -> None:
    contigs = {contig.id: contig for contig in _random_contigs("ACGT", seed=1)}
    rows = stop_free_frames(list(contigs.values()), 60).to_pylist()
    assert len(rows) > 100
    for row in rows:
        bases = contigs[row["contig"]].sequence[row["start"] : row["end"]].decode()
        forward = row["frame"].startswith("F")
        assert row["nucleotide"] == (bases if forward else str(Seq(bases).reverse_complement()))


def test_stop_free_frames_without_contig_or_frame_gives_an_empty_table() -> None:
    assert stop_free_frames([], 300).num_rows == 0
    assert stop_free_frames([Contig("a", "", b""), Contig("b", "", b"TAATTA")], 300).num_rows == 4


def test_stop_free_frames_runs_lie_where_their_residues_are_read() -> None:
    contigs = {contig.id: contig for contig in _random_contigs("ACGT", seed=2)}
    rows = stop_free_frames(list(contigs.values()), 300, runs=True).to_pylist()
    rows = [row for row in rows if row["frame"].islower()]
    assert {row["frame"] for row in rows} == {name.lower() for name in FRAME_NAMES}
    for row in rows:
        bases = Seq(contigs[row["contig"]].sequence[row["start"] : row["end"]].decode())
        if row["frame"].startswith("r"):
            bases = bases.reverse_complement()
        assert str(bases.translate()) == row["protein"]


@pytest.mark.parametrize(("bases", "sizes"), [(300, [2, 2, 1]), (10, [1] * 5), (10_000, [5])])
def test_frame_parts_are_of_two_batches_windows(
    bases: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virnucpro_core.sequences.frames.BATCH_BASES", bases)
    parts = frame_parts([Contig("c", "", b"GCC" * 500)], 300)
    assert [len(part["window"].unique()) for part in parts] == sizes
    assert [part.num_rows for part in frame_parts([], 300)] == [0]


@pytest.mark.parametrize(("bases", "sizes"), [(900, [3, 3, 1]), (901, [4, 3]), (10, [1] * 7)])
def test_batches_are_full_where_bases_and_names_reach_the_bound(
    bases: int, sizes: list[int]
) -> None:
    contigs = [Contig(f"c{n}", "", b"A" * 100) for n in range(7)]  # 300 each
    assert [len(batch) for batch in batches(contigs, bases)] == sizes


def test_translate_batch_size_changes_neither_rows_nor_digest(
    edge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translate([edge], tmp_path / "whole.parquet", 300)
    small = partial(batches, bases=700)
    monkeypatch.setattr("virnucpro_core.sequences.translate.batches", small)
    translate([edge], tmp_path / "parts.parquet", 300)
    whole, parts = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("whole", "parts"))
    assert pq.ParquetFile(tmp_path / "parts.parquet").num_row_groups > 5
    assert whole.equals(parts)
    assert frame_meta(tmp_path / "whole.parquet") == frame_meta(tmp_path / "parts.parquet")


@pytest.mark.parametrize(
    "text", [">a\n" + "GCC" * 20, ">a\n" + "GCA" * 19 + "GCT", ">b\n" + "GCA" * 20]
)
def test_translate_any_other_base_or_name_gives_another_digest(text: str, tmp_path: Path) -> None:
    digests = set()
    for name, content in (("one", ">a\n" + "GCA" * 20), ("other", text)):
        (tmp_path / name).write_text(content + "\n")
        translate([tmp_path / name], tmp_path / f"{name}.parquet", 60)
        digests.add(frame_meta(tmp_path / f"{name}.parquet").digest)
        assert frame_meta(tmp_path / f"{name}.parquet").rows > 0
    assert len(digests) == 2


def test_frame_table_of_the_same_letters_cut_otherwise_has_another_digest(tmp_path: Path) -> None:
    digests = set()
    for texts in (("MK", "L"), ("M", "KL")):
        rows = [
            dict(zip(FRAMES.names, ("f", "c", 1, "F1", 0, 9, "A", text), strict=True))
            for text in texts
        ]
        with frame_table(tmp_path / "f.parquet", 300) as table:
            table.add_contigs([Contig("c", "", b"ACGT" * 9)])
            table.add_frames(pa.RecordBatch.from_pylist(rows, FRAMES))
        meta = frame_meta(tmp_path / "f.parquet")
        assert (meta.genetic_code, meta.read_with, meta.runs) == ("1", {"1": 1}, False)
        digests.add(meta.digest)
    assert len(digests) == 2


def test_frames_are_of_the_standard_code_and_without_runs_unless_told() -> None:
    stops = Contig("stops", "", b"TTAA" * 15)
    contigs = [stops, Contig("agents", "", b"GCAAGATCA" * 7)]  # AGA is a stop of code 2 alone
    found = stop_free_frames(contigs, 30)
    assert found.equals(stop_free_frames(contigs, 30, code=1, runs=False))
    assert found.equals(pa.Table.from_batches(frame_parts(contigs, 30), FRAMES))
    for code, runs in ((2, False), (1, True)):
        assert not found.equals(stop_free_frames(contigs, 30, code=code, runs=runs))


def test_translate_contigs_without_frames_still_give_different_digests(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        fasta = tmp_path / f"{name}.fa"
        fasta.write_text(f">{name}\nTT\n")
        translate([fasta], tmp_path / f"{name}.parquet", 300)
        digests.add(frame_meta(tmp_path / f"{name}.parquet").digest)
    assert len(digests) == 2


def test_translate_bad_input_leaves_no_file(tmp_path: Path) -> None:
    fasta = tmp_path / "contigs.fa"
    fasta.write_text(">a\nACGTACGTACGT\n>b\nMKLV\n")
    with pytest.raises(InputError, match="line 4"):
        translate([fasta], tmp_path / "out" / "frames.parquet", 300, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_translate_counts_and_says_what_it_wrote_and_keeps_its_input(
    edge: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fasta = tmp_path / "in.fa"
    fasta.write_bytes(edge.read_bytes())
    with pytest.raises(InputError, match="is an input"):
        translate([fasta], fasta, 300)
    assert fasta.read_bytes() == edge.read_bytes()
    for runs, what in ((False, "stop-free frames of"), (True, "stop-free frames and runs of")):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            folder = tmp_path / "a" / str(runs)
            rows = translate([fasta], tmp_path / "f.parquet", 300, fasta_dir=folder, runs=runs)
        assert f"{rows} {what} windows of 300" in caplog.text
        meta = frame_meta(tmp_path / "f.parquet")
        assert (meta.rows, meta.runs) == (rows, runs)
        assert (folder / "identified_protein.faa").stat().st_size


def test_frame_table_columns_are_those_of_the_contract(edge_frames: Path) -> None:
    assert pa.schema(pq.read_schema(edge_frames)).remove_metadata() == FRAMES


PEAK = """
import resource, sys
from pathlib import Path
from virnucpro_core.sequences.split import split
from virnucpro_core.sequences.translate import frame_table, translate
fasta, out = map(Path, sys.argv[1:])
translate(split([fasta], out, 2_000_000), out / "frames.parquet", 500)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_split_and_translate_tenfold_input_need_no_more_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    peaks = []
    for megabases in (4, 40):
        fasta = tmp_path / f"{megabases}.fa"
        with fasta.open("wb") as handle:
            for n in range(megabases * 50):
                bases = rng.choice(np.frombuffer(b"ACGT", np.uint8), 20_000).tobytes()
                handle.write(b">contig%d\n%s\n" % (n, bases))
        run = [sys.executable, "-c", PEAK, str(fasta), str(tmp_path / str(megabases))]
        done = subprocess.run(run, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] < peaks[0] + 40, f"MB for 4 and 40 megabases: {peaks}"
