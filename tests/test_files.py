"""Files that a run must not replace, and what an earlier run left."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from sample import Sample
from test_cli import assert_refused, virnucpro

from virnucpro_core.embedding.merge import merge
from virnucpro_core.embedding.shards import EmbeddingFile
from virnucpro_core.errors import InputError
from virnucpro_core.files import made, written_aside
from virnucpro_core.sequences.split import split
from virnucpro_core.sequences.translate import translate

REPLACED = "is an input that the output would replace; "


def test_folder_below_a_file_is_refused_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    refused = pytest.raises(InputError, match=r"/a: is a file where a folder has to be; name")
    with refused, made(tmp_path / "a/b/c"):
        pass


@pytest.mark.parametrize("link", [False, True])
def test_split_input_named_as_a_piece_is_refused_and_kept(tmp_path: Path, link: bool) -> None:
    fasta = tmp_path / "piece_00001.fasta"
    fasta.write_text(">a\nACGT\n")
    given = tmp_path / "link.fa" if link else fasta
    if link:
        given.symlink_to(fasta)
    with pytest.raises(InputError, match=REPLACED):
        split([given], tmp_path)
    assert fasta.read_text() == ">a\nACGT\n"


def test_split_refused_half_way_leaves_neither_pieces_nor_folder(tmp_path: Path) -> None:
    (tmp_path / "bad.fa").write_text(">a\nACGT\n>b\nEFIL\n")
    with pytest.raises(InputError):
        split([tmp_path / "bad.fa"], tmp_path / "new/split", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.fa"]


def test_translate_into_its_fasta_is_refused_and_leaves_it(tmp_path: Path) -> None:
    fasta = tmp_path / "in.fa"
    fasta.write_text(">a\nACGT\n")
    with pytest.raises(InputError, match=REPLACED):
        translate([fasta], fasta, 300)
    assert fasta.read_text() == ">a\nACGT\n"


def test_merge_into_a_shard_is_refused_and_leaves_it(sample: Sample) -> None:
    before = sample.shards[0].read_bytes()
    with pytest.raises(InputError, match=REPLACED):
        merge(sample.shards, sample.frames, sample.shards[0])
    assert sample.shards[0].read_bytes() == before


def test_classify_into_the_folder_of_its_frame_table_is_refused(sample: Sample) -> None:
    table = sample.folder / "out/frames.parquet"
    table.parent.mkdir()
    sample.frames[0] = sample.frames[0].rename(table)
    before = table.read_bytes()
    with pytest.raises(InputError, match=REPLACED):
        sample.classify()
    assert table.read_bytes() == before


def test_cli_predict_and_embed_into_their_input_exit_2(tmp_path: Path) -> None:
    fasta = tmp_path / "viral.fasta.gz"
    fasta.write_text(">a\nACGT\n")
    for words in (["predict", fasta, "-o", tmp_path], ["embed", fasta, "-o", fasta]):
        assert_refused(virnucpro(*words, "--model", "mini"), 2, REPLACED)


def test_merge_of_a_merged_file_is_refused(sample: Sample) -> None:
    with pytest.raises(InputError, match="is merged already"):
        merge([sample.embeddings], sample.frames, sample.folder / "again.h5")


def test_merge_into_a_linked_folder_finds_its_shards(sample: Sample) -> None:
    (sample.folder / "far/away").mkdir(parents=True)
    (sample.folder / "link").symlink_to(sample.folder / "far/away")
    merge(sample.shards, sample.frames, sample.folder / "link/embeddings.h5")
    for folder in ("link", "far/away"):
        found = EmbeddingFile(sample.folder / folder / "embeddings.h5")
        assert found.digests == EmbeddingFile(sample.embeddings).digests


@pytest.mark.parametrize("table", ["frames", "contigs"])
def test_table_damaged_within_is_refused(sample: Sample, table: str) -> None:
    path = sample.contigs if table == "contigs" else sample.frames[0]
    content = bytearray(path.read_bytes())
    at = content.index(b"\x28\xb5\x2f\xfd") + 4  # within the first zstd frame
    content[at : at + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path.name}: is damaged"):
        sample.classify()


def test_written_aside_folder_that_cannot_be_synced_keeps_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    with written_aside(tmp_path / "out.txt") as aside:
        aside.write_text("whole")
    assert (tmp_path / "out.txt").read_text() == "whole"
