"""Merging the shards of a sample's pieces."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_embedding import CPU, read
from tiny import WINDOW

from virnucpro_core.embedding.engine import embed
from virnucpro_core.embedding.hdf5 import data_places, sign
from virnucpro_core.embedding.merge import merge
from virnucpro_core.embedding.shards import EmbeddingFile
from virnucpro_core.errors import InputError
from virnucpro_core.models.store import Model
from virnucpro_core.parquet import frame_meta
from virnucpro_core.progress import Row
from virnucpro_core.sequences.split import split
from virnucpro_core.sequences.translate import translate


class Pieces:
    """A sample in pieces: its frame tables and its shards."""

    def __init__(self, folder: Path, edge: Path, model: Model) -> None:
        self.folder = folder
        (folder / "shards").mkdir()
        self.frames, self.shards = [], []
        for piece in split([edge], folder, 9_000):
            self.frames.append(folder / f"{piece.stem}.parquet")
            self.shards.append(folder / "shards" / f"{piece.stem}.h5")
            translate([piece], self.frames[-1], WINDOW)
            embed(self.frames[-1], self.shards[-1], model, devices=CPU)


def embedded(sequence: str, model: Model, folder: Path) -> tuple[Path, Path]:
    """The frame table and the shard of one contig."""
    fasta, table, shard = (folder / f"one.{ending}" for ending in ("fa", "parquet", "h5"))
    fasta.write_text(f">one\n{sequence}\n")
    translate([fasta], table, WINDOW)
    embed(table, shard, model, devices=CPU)
    return table, shard


@pytest.fixture
def pieces(edge: Path, tiny: Model, tmp_path: Path) -> Pieces:
    return Pieces(tmp_path, edge, tiny)


@pytest.mark.parametrize("copy", [False, True])
def test_merge_shards_in_any_order_gives_the_frame_tables_order(
    pieces: Pieces, shard: Path, copy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = pieces.folder / "embeddings.h5"
    assert len(pieces.shards) > 2
    shown: list[Row] = []
    monkeypatch.setattr("virnucpro_core.progress._relay", [shown.append])
    merge(pieces.shards[::-1], pieces.frames, output, copy=copy)
    names, values = read(output)
    assert names == read(shard)[0]
    assert shown[-1].done == shown[-1].total == len(names)
    assert np.abs(values - read(shard)[1]).max() < 1e-5
    with h5py.File(output) as file:
        assert file["embedding"].is_virtual is not copy
        assert np.array_equal(file["embedding"][()], values), "as any HDF5 reader sees it"
    if not copy:
        assert output.stat().st_size < 0.5 * values.nbytes


@pytest.mark.parametrize("copy", [False, True])
def test_merge_at_another_time_gives_the_same_bytes(pieces: Pieces, copy: bool) -> None:
    merges = []
    for name in ("one.h5", "two.h5"):
        merge(pieces.shards, pieces.frames, pieces.folder / name, copy=copy)
        merges.append((pieces.folder / name).read_bytes())
        time.sleep(1.1)  # HDF5's times are whole seconds
    assert merges[0] == merges[1]


def test_merge_result_moved_linked_and_published_is_still_whole(
    pieces: Pieces, tmp_path: Path
) -> None:
    merge(pieces.shards, pieces.frames, pieces.folder / "embeddings.h5")
    expected = read(pieces.folder / "embeddings.h5")[1]
    staged = tmp_path / "staged"
    staged.mkdir()
    (staged / "embeddings.h5").symlink_to(pieces.folder / "embeddings.h5")
    assert np.array_equal(read(staged / "embeddings.h5")[1], expected)
    published = tmp_path / "published"
    (published / "shards").mkdir(parents=True)
    shutil.copy(pieces.folder / "embeddings.h5", published)
    with pytest.raises(InputError, match="is not beside it"):
        EmbeddingFile(published / "embeddings.h5")
    for path in pieces.shards:
        shutil.move(path, published / "shards")
    assert np.array_equal(read(published / "embeddings.h5")[1], expected)
    with pytest.raises(InputError, match="is not beside it"):
        EmbeddingFile(pieces.folder / "embeddings.h5")
    with h5py.File(pieces.folder / "embeddings.h5") as file:
        assert np.isnan(file["embedding"]).all(), "to any HDF5 reader, whom nobody warns"


def test_merge_into_a_folder_that_is_a_link_finds_its_sources_from_there(pieces: Pieces) -> None:
    (pieces.folder / "far/away").mkdir(parents=True)
    (pieces.folder / "link").symlink_to("far/away")
    rows = merge(pieces.shards, pieces.frames, pieces.folder / "link/embeddings.h5")
    for folder in ("link", "far/away"):
        assert len(read(pieces.folder / folder / "embeddings.h5")[0]) == rows


def test_merge_of_links_names_them_and_not_where_they_lead(pieces: Pieces) -> None:
    """As the shards of a workflow's task lie, which are published beside its result."""
    staged, published = pieces.folder / "staged", pieces.folder / "published"
    staged.mkdir()
    for path in pieces.shards:
        (staged / path.name).symlink_to(path)
    rows = merge(sorted(staged.iterdir()), pieces.frames, staged / "embeddings.h5")
    shutil.copytree(staged, published)
    shutil.rmtree(pieces.folder / "shards")
    assert len(read(published / "embeddings.h5")[0]) == rows


def test_merge_of_a_sample_without_frames_has_no_rows(tiny: Model, tmp_path: Path) -> None:
    table, shard = embedded("AC", tiny, tmp_path)
    assert merge([shard], [table], tmp_path / "embeddings.h5") == 0
    names, values = read(tmp_path / "embeddings.h5")
    assert names == []
    assert values.shape == (0, tiny.dim)
    with h5py.File(tmp_path / "embeddings.h5") as file:
        assert not file["embedding"].is_virtual, "HDF5 1 has none without rows"


def test_merge_of_what_is_merged_is_refused(pieces: Pieces) -> None:
    merge(pieces.shards, pieces.frames, pieces.folder / "embeddings.h5")
    with pytest.raises(InputError, match=r"embeddings\.h5: is merged already; give the shards"):
        merge([pieces.folder / "embeddings.h5"], pieces.frames, pieces.folder / "again.h5")


def test_merge_into_one_of_its_inputs_is_refused(pieces: Pieces) -> None:
    for path in (pieces.shards[1], pieces.frames[1]):
        before = path.read_bytes()
        with pytest.raises(InputError, match="is an input that the output would replace"):
            merge(pieces.shards, pieces.frames, path)
        assert path.read_bytes() == before


def test_merge_missing_shard_is_refused(pieces: Pieces) -> None:
    with pytest.raises(InputError, match=r"piece_00001\.parquet: no shard embeds"):
        merge(pieces.shards[1:], pieces.frames, pieces.folder / "embeddings.h5")
    assert not (pieces.folder / "embeddings.h5").exists()


def test_merge_doubled_shard_or_table_is_refused(pieces: Pieces) -> None:
    twice = Path(shutil.copy(pieces.shards[0], pieces.folder / "again.h5"))
    with pytest.raises(InputError, match="embeds the same frames as"):
        merge([*pieces.shards, twice], pieces.frames, pieces.folder / "embeddings.h5")
    with pytest.raises(InputError, match="given twice"):
        merge(pieces.shards, [*pieces.frames, pieces.frames[0]], pieces.folder / "embeddings.h5")


def test_merge_foreign_shard_is_refused(pieces: Pieces, shard: Path) -> None:
    with pytest.raises(InputError, match="embeds none of the given frame tables"):
        merge([*pieces.shards, shard], pieces.frames, pieces.folder / "embeddings.h5")


def test_merge_truncated_shard_is_refused(pieces: Pieces) -> None:
    os.truncate(pieces.shards[1], pieces.shards[1].stat().st_size - 100)
    with pytest.raises(InputError, match="truncated"):
        merge(pieces.shards, pieces.frames, pieces.folder / "embeddings.h5")


Change = Callable[[h5py.File], None]


def rewrite(path: Path, change: Change) -> None:
    """Change a file of embeddings as if it had been written so."""
    with h5py.File(path, "r+") as file:
        change(file)
        file.flush()
        places = data_places(file)
    with path.open("rb+", buffering=0) as raw:
        sign(raw.fileno(), places)


def test_merge_shard_of_fewer_rows_than_its_table_has_frames_is_refused(
    edge_frames: Path, tiny: Model, tmp_path: Path
) -> None:
    _, shard = embedded("GCA" * 30, tiny, tmp_path)
    digest = frame_meta(edge_frames).digest
    rewrite(shard, lambda file: file.attrs.__setitem__("digest", digest))
    with pytest.raises(InputError, match=r"one\.h5: \d rows for 121 frames; embed again"):
        merge([shard], [edge_frames], tmp_path / "embeddings.h5")


def test_merge_table_of_the_same_frames_by_another_window_is_refused(
    tiny: Model, tmp_path: Path
) -> None:
    _, shard = embedded("GCA" * 30, tiny, tmp_path)
    wider = tmp_path / "wider.parquet"
    translate([tmp_path / "one.fa"], wider, WINDOW + 1)
    with pytest.raises(InputError, match=r"wider\.parquet: has windows of 301 bases, .* 300; "):
        merge([shard], [wider], tmp_path / "embeddings.h5")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda file: file["embedding"].__setitem__((1, 3), 0.5), "F2 is damaged"),
        (lambda file: file["checksum"].__setitem__(1, 5), "F2 is damaged"),
        (lambda file: file["frame_id"].__setitem__(1, b"x_chunk_1F1"), "holds x_chunk_1F1 where"),
        (lambda file: file.attrs.__setitem__("format", "1"), "it is of format '1', not 2"),
        (lambda file: file.attrs.__setitem__("numerics", "1"), "other weights"),
        (lambda file: file.attrs.__setitem__("weights", "{}"), "other weights"),
        (lambda file: file.attrs.__setitem__("precision", "fp16"), "in fp16"),
    ],
)
def test_merge_shard_of_another_content_is_refused(
    pieces: Pieces, change: Change, says: str
) -> None:
    rewrite(pieces.shards[1], change)
    with pytest.raises(InputError, match=says):
        merge(pieces.shards, pieces.frames, pieces.folder / "embeddings.h5")


def test_merge_tables_of_two_genetic_codes_are_refused(pieces: Pieces) -> None:
    fasta = pieces.frames[1].with_suffix(".fasta")
    translate([fasta], pieces.frames[1], WINDOW, code="auto")
    with pytest.raises(InputError, match=r"translated with genetic code auto, and .* with 1; "):
        merge(pieces.shards, pieces.frames, pieces.folder / "e.h5")
