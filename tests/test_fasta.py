"""Reading FASTA: what is accepted, and what is refused with which sentence."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pytest

from virnucpro_core.errors import InputError
from virnucpro_core.sequences.fasta import MAX_BASES, Contig, read_fasta

TEXT = b">a first contig\r\nACGT\r\nacgn\r\n\r\n>b\nTTTT\nRYK\n>empty\n>c\tx y\n  AC GT\n"
CONTIGS = [
    Contig("a", "first contig", b"ACGTacgn"),
    Contig("b", "", b"TTTTRYK"),
    Contig("empty", "", b""),
    Contig("c", "x y", b"ACGT"),
]


def _zstd(data: bytes) -> bytes:
    compressed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return compressed


@pytest.mark.parametrize(
    "compress", [bytes, gzip.compress, bz2.compress, lzma.compress, _zstd], ids=str
)
def test_read_fasta_any_compression_gives_the_same_contigs(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "contigs.whatever"
    path.write_bytes(compress(TEXT))
    assert list(read_fasta([path])) == CONTIGS


def test_read_fasta_concatenated_gzip_members_are_all_read(tmp_path: Path) -> None:
    path = tmp_path / "contigs.fa.gz"
    path.write_bytes(gzip.compress(TEXT[:20]) + gzip.compress(TEXT[20:]))
    assert list(read_fasta([path])) == CONTIGS


@pytest.mark.parametrize("compress", [bytes, gzip.compress, _zstd], ids=str)
def test_read_fasta_pipe_is_read_from_its_first_byte(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    Thread(target=path.write_bytes, args=(compress(TEXT),), daemon=True).start()
    assert list(read_fasta([path])) == CONTIGS


def test_read_fasta_several_files_keep_their_order(tmp_path: Path) -> None:
    paths = [tmp_path / "2.fa", tmp_path / "1.fa"]
    paths[0].write_text(">x\nA\n")
    paths[1].write_text(">y\nC")
    assert [contig.id for contig in read_fasta(paths)] == ["x", "y"]


@pytest.mark.parametrize(
    ("content", "where", "says"),
    [
        (b"", "", "the file is empty"),
        (b"\n\n", "", "holds no contig"),
        (b"ACGT\n", "line 1", "not FASTA"),
        (b"\n\n@read1\nACGT\n+\nIIII\n", "line 3", "looks like FASTQ"),
        (b">a\nACGT\n>b\nACG\nMKLEV\n", "line 5", "looks like protein"),
        (b">a\nACGU\n", "line 2", "RNA"),
        (b">a\nACGT\nAXXX\nacgn\n", "line 3", "'X' is no nucleotide; write N for a masked base"),
        (b">a\nxxxx\n", "line 2", "write N for a masked base"),
        (b">a\nMKVSDRHXXNA\n", "line 2", "looks like protein"),
        (b">a\nACGTACGTARX\n", "line 2", "write N for a masked base"),  # one other letter in ten
        (b">a\nACGTACGTRX\n", "line 2", "looks like protein"),
        (b">a\nEACGT\n", "line 2", "'E' is no nucleotide"),
        (b">a\nAC1T\n", "line 2", "'1' is no nucleotide"),
        (b">a\nAC\n>b\nAC\n>a\nGT\n", "line 5", "appears twice"),
        (b">a\nAC\n>\nGT\n", "line 3", "no id"),
        (b">a\xff\nAC\n", "line 1", "not UTF-8"),
        (b">a\rACGT\r>b\rACGT\r", "line 1", "old Mac"),
        (gzip.compress(TEXT * 50)[:-20], "", "truncated or damaged"),
        (bz2.compress(TEXT)[:-8], "", "truncated or damaged"),
        (lzma.compress(TEXT)[:-8], "", "truncated or damaged"),
        (_zstd(TEXT * 50)[:-8], "", "truncated or damaged"),
        (b"\x1f\x8b garbage that is no gzip", "", "truncated or damaged"),
    ],
)
def test_read_fasta_bad_file_is_refused_with_file_line_and_remedy(
    tmp_path: Path, content: bytes, where: str, says: str
) -> None:
    path = tmp_path / "contigs.fa"
    path.write_bytes(content)
    with pytest.raises(InputError) as refusal:
        list(read_fasta([path]))
    sentence = str(refusal.value)
    assert sentence.startswith(f"{path}{', ' if where else ''}{where}:")
    assert says in sentence
    assert ";" in sentence, "a remedy"
    assert sentence.endswith(".")


def test_read_fasta_contig_too_long_for_a_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_BASES < 2**31, "Arrow's texts end there"
    monkeypatch.setattr("virnucpro_core.sequences.fasta.MAX_BASES", 8)
    (tmp_path / "in.fa").write_text(">a\nACGTACGT\n>b\nACGT\nACGTA\n")
    with pytest.raises(
        InputError, match=r"in\.fa, line 3: a contig of 9 bases, .* cut it in two\."
    ):
        list(read_fasta([tmp_path / "in.fa"]))


def test_read_fasta_ids_of_several_files_are_made_unique_by_the_files_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the contents: here the second file has the very names that would be given."""
    ids = [["k1", "k2", "k1_file2"], ["k3", "k1", "k1_file2"], ["k1", "k4"]]
    paths = [tmp_path / f"{number}.fa" for number in range(3)]
    for path, names in zip(paths, ids, strict=True):
        path.write_text("".join(f">{name} of {path.name}\nACGT\n" for name in names))
    contigs = list(read_fasta(paths))
    assert [contig.id for contig in contigs] == [
        *ids[0],
        *["k3", "k1_file2_file2", "k1_file2_file2_file2"],
        *["k1_file3", "k4"],
    ]
    assert [contig.description for contig in contigs][3:5] == ["of 1.fa", "of 1.fa"]
    assert "1.fa: an earlier file has 2 of its ids too; they get _file2" in caplog.text


def test_read_fasta_id_twice_in_a_later_file_is_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "1.fa", tmp_path / "2.fa"]
    for path in paths:
        path.write_text(">same\nACGT\n")
    paths[1].write_text(">same\nACGT\n" * 2)
    with pytest.raises(InputError, match=r"2\.fa, line 3: contig id 'same' appears twice"):
        list(read_fasta(paths))


def test_read_fasta_file_named_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "1.fa"
    path.write_text(">same\nACGT\n")
    with pytest.raises(InputError, match=r"1\.fa: is named twice"):
        list(read_fasta([path, path]))


def test_read_fasta_byte_order_mark_is_no_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "contigs.fa"
    path.write_bytes(codecs.BOM_UTF8 + TEXT)
    assert list(read_fasta([path])) == CONTIGS


def test_read_fasta_file_of_somebody_else_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may read all
    with pytest.raises(InputError, match=r"contigs\.fa: may not be read; ask its owner"):
        list(read_fasta([tmp_path / "contigs.fa"]))


@pytest.mark.parametrize(("name", "says"), [("absent.fa", "no such file"), (".", "is a folder")])
def test_read_fasta_path_without_file_is_refused(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        list(read_fasta([tmp_path / name]))
