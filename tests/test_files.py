"""Files that a run must not replace, and what an earlier run left."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest
from sample import Sample
from test_cli import assert_refused, virnucpro

from virnucpro_core.embedding.merge import merge
from virnucpro_core.embedding.shards import EmbeddingFile
from virnucpro_core.errors import BusyError, InputError, MachineError, StoppedError
from virnucpro_core.files import (
    blame_machine,
    is_aside,
    keep_apart,
    locked,
    made,
    sync_folder,
    written_aside,
)
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


@pytest.mark.parametrize(
    ("error", "blamed"),
    [
        *[
            (OSError(number, ""), MachineError)
            for number in (
                *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE),
                *(errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOLCK),
            )
        ],
        (OSError(errno.ENOMEM, ""), StoppedError),
        (MemoryError(), StoppedError),
        (OSError(errno.EACCES, ""), None),
        (OSError(errno.ENOENT, ""), None),
        (ValueError("no number"), None),
    ],
)
def test_errors_are_a_machine_s_a_want_of_memory_s_or_a_file_s(
    error: BaseException, blamed: type[BaseException] | None, tmp_path: Path
) -> None:
    if blamed is None:
        blame_machine(error, tmp_path)
        return
    with pytest.raises(blamed, match=f"{tmp_path}: .*; nothing finished is lost, ") as raised:
        blame_machine(error, tmp_path)
    assert raised.type is blamed
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [errno.EIO, errno.EINVAL])
def test_folder_that_cannot_be_synced_is_an_error_unless_its_file_system_never_can(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", fsync)
    if error == errno.EINVAL:
        sync_folder(tmp_path)
        return
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)


def test_written_aside_syncs_the_file_then_renames_then_syncs_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def fsync(file: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "file")
        assert (tmp_path / "out").exists() == (done[-1] == "folder")

    monkeypatch.setattr(os, "fsync", fsync)
    with written_aside(tmp_path / "out") as aside:
        aside.write_text("whole")
        assert is_aside(aside)
    assert done == ["file", "folder"]
    assert [one.name for one in tmp_path.iterdir()] == ["out"]
    assert not is_aside(tmp_path / ".out")
    assert not is_aside(tmp_path / "out.partial")


def test_written_aside_on_error_leaves_the_former_content_alone(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    with suppress(ValueError), written_aside(path) as aside:
        aside.write_text("half")
        raise ValueError
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("out", "old")]


def test_made_removes_what_it_made_where_that_stays_empty(tmp_path: Path) -> None:
    deep = tmp_path / "a/b/c"
    with made(deep), made(deep):
        pass
    assert deep.is_dir()
    with pytest.raises(KeyboardInterrupt), made(deep / "d/e"):
        raise KeyboardInterrupt
    assert deep.is_dir()
    assert not list(deep.iterdir())
    with suppress(KeyboardInterrupt), made(deep / "d/e"):
        (deep / "d/kept").touch()
        raise KeyboardInterrupt
    assert [one.name for one in (deep / "d").iterdir()] == ["kept"]


def test_lock_is_held_by_one_and_goes_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".lock"
    with locked(path, "busy"):
        mode = stat.S_IMODE(path.stat().st_mode)
        with pytest.raises(BusyError, match=r"^busy$"), locked(path, "busy"):
            raise AssertionError("held twice")
        assert path.exists()
    assert not path.exists()
    umask = os.umask(0)
    os.umask(umask)
    assert mode == 0o666 & ~umask
    with locked(path, "busy"):
        path.unlink()
        path.touch()  # another's, who found none
    assert path.exists()


def test_lock_whose_holder_removes_it_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".lock"
    files: list[int] = []
    whole = os.open

    def late(name: Path, *flags: int) -> int:
        file = whole(name, *flags)
        if not files:
            path.unlink()  # its holder has finished, between the two calls
        files.append(file)
        return file

    monkeypatch.setattr(os, "open", late)
    with locked(path, "busy"):
        assert path.exists()
    assert len(files) == 2
    for file in files:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file)


def test_keep_apart_knows_a_file_by_any_name(tmp_path: Path) -> None:
    (tmp_path / "in.fa").touch()
    (tmp_path / "link").symlink_to(tmp_path / "in.fa")
    keep_apart(tmp_path / "none", [tmp_path / "in.fa", tmp_path / "absent"])
    with pytest.raises(InputError, match=r"in\.fa: is an input"):
        keep_apart(tmp_path / "link", [tmp_path / "absent", tmp_path / "in.fa"])
