"""What a shard says of itself: its origin, its ids, what embedded it; and what is refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample import Sample
from test_monitor import sampled

from virnucpro_core.embedding.hdf5 import contiguous, lay_out, open_h5
from virnucpro_core.embedding.merge import merge
from virnucpro_core.embedding.series import POINTS
from virnucpro_core.embedding.shards import (
    CHUNK_ROWS,
    USED_BYTES,
    EmbeddingFile,
    Origin,
    _fitting,
    _together,
    create_shard,
    seal,
    write_rows,
)
from virnucpro_core.errors import InputError
from virnucpro_core.parquet import frame_meta

ORIGIN = Origin("mini", {"a": "1", "b": "2"}, 500, "fp16", True, "1")


def said_in(table: Path) -> dict[bytes, bytes]:
    """What the footer of a frame table says, but for the sums of its own rows."""
    footer = pq.read_metadata(table).metadata
    return {
        key: value
        for key, value in footer.items()
        if key.startswith(b"virnucpro.") and b"crc" not in key
    }


def described(**others: object) -> Callable[[h5py.File], None]:
    """What builds a shard of two rows that says other things of itself, or nothing (None)."""

    def build(file: h5py.File) -> None:
        ORIGIN.write(file)
        file.attrs["digest"] = "d"
        for name, value in others.items():
            if value is None:
                del file.attrs[name]
            else:
                file.attrs[name] = value
        contiguous(file, "embedding", (2, 3), "<f4")
        contiguous(file, "checksum", (2,), "<u4")
        file.create_dataset("frame_id", data=np.array([b"x", b"y"]))

    return build


def test_origin_is_read_as_it_was_written(tmp_path: Path) -> None:
    lay_out(tmp_path / "s.h5", described())
    shard = EmbeddingFile(tmp_path / "s.h5")
    assert (shard.origin, shard.origin.model) == (ORIGIN, "mini")
    assert (shard.rows, shard.dim, shard.digests) == (2, 3, ("d",))
    with open_h5(tmp_path / "s.h5") as file:
        assert file.attrs["complete"]


def test_origin_is_the_same_bytes_in_whatever_order_its_weights_come(tmp_path: Path) -> None:
    for name, weights in (("a", {"a": "1", "b": "2"}), ("b", {"b": "2", "a": "1"})):
        lay_out(tmp_path / name, replace(ORIGIN, weights=weights).write)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"format": "1"}, "it is of format '1', not 2"),
        *(({name: None}, "is truncated, damaged or no file") for name in ("format", "digest")),
        *(({field.name: None}, "is truncated, damaged or no") for field in fields(Origin)),
        ({"window": "many"}, "is truncated, damaged or no file"),
        ({"weights": "[1"}, "is truncated, damaged or no file"),
    ],
)
def test_shard_that_says_otherwise_is_refused(
    others: dict[str, object], said: str, tmp_path: Path
) -> None:
    lay_out(tmp_path / "s.h5", described(**others))
    with pytest.raises(InputError, match=said):
        EmbeddingFile(tmp_path / "s.h5")


@pytest.mark.parametrize("part", ["frame_id", "checksum"])
def test_shard_whose_parts_are_of_other_lengths_is_refused(part: str, tmp_path: Path) -> None:
    def build(file: h5py.File) -> None:
        described()(file)
        del file[part]
        file.create_dataset(part, data=np.zeros(3, "S1" if part == "frame_id" else "<u4"))

    lay_out(tmp_path / "s.h5", build)
    with pytest.raises(InputError, match="its parts are not of one length"):
        EmbeddingFile(tmp_path / "s.h5")


@pytest.mark.parametrize("rows", [[2, 1], [1], [3, -1], []])
def test_merged_file_whose_sources_have_other_rows_is_refused(
    rows: list[int], tmp_path: Path
) -> None:
    def build(file: h5py.File) -> None:
        described()(file)
        group = file.create_group("sources")
        group["rows"] = np.array(rows, np.int64)
        group["path"] = np.array([b"a"] * len(rows))
        group["digest"] = np.array([b"d"] * len(rows))

    lay_out(tmp_path / "e.h5", build)
    with pytest.raises(InputError, match="its sources have other rows"):
        EmbeddingFile(tmp_path / "e.h5")


def test_origins_differ_in_all_but_the_name_of_the_model() -> None:
    for field in fields(Origin):
        value = getattr(ORIGIN, field.name)
        other: Any = {"c": "3"} if isinstance(value, dict) else not value
        assert (replace(ORIGIN, **{field.name: other}) == ORIGIN) is (field.name == "model")


def test_shard_of_many_rows_is_read_part_by_part_in_the_table_s_order(tmp_path: Path) -> None:
    sample = Sample(tmp_path, f">c\n{'GCA' * 900}\n", lambda _: (1.0, 2.0))
    table = pq.read_table(sample.frames[0])
    some = pa.concat_tables([table] * (CHUNK_ROWS // len(table) + 2))
    names = [f"{'é' * (n % 5)}{n}" for n in range(len(some))]
    at = some.schema.get_field_index("frame_id")
    some = some.set_column(at, some.schema.field(at), pa.array(names))
    path = tmp_path / "many.parquet"
    pq.write_table(some.replace_schema_metadata(said_in(sample.frames[0])), path)
    create_shard(tmp_path / "s.h5", path, "d", ORIGIN, 2)
    values = np.arange(2 * len(some), dtype=np.float32).reshape(-1, 2)
    seal(
        tmp_path / "s.h5", write_rows(tmp_path / "s.h5", [values[:7], values[7:7], values[7:]]), []
    )
    parts = list(EmbeddingFile(tmp_path / "s.h5").parts())
    assert [len(ids) for ids, _ in parts] == [CHUNK_ROWS, len(some) - CHUNK_ROWS]
    assert [name for ids, _ in parts for name in ids] == names
    assert np.array_equal(np.concatenate([part for _, part in parts]), values)


def test_shard_without_rows_is_one(sample: Sample) -> None:
    table = pq.read_table(sample.frames[0]).slice(0, 0)
    path = sample.folder / "none.parquet"
    pq.write_table(table.replace_schema_metadata(said_in(sample.frames[0])), path)
    create_shard(sample.folder / "none.h5", path, "d", ORIGIN, 2)
    seal(sample.folder / "none.h5", write_rows(sample.folder / "none.h5", []), [])
    shard = EmbeddingFile(sample.folder / "none.h5")
    assert (shard.rows, list(shard.parts()), shard.used()) == (0, [], [])


@pytest.mark.parametrize(("devices", "room"), [(0, 1), (1, 1), (3, 3)])
def test_shard_has_room_for_what_each_device_says(devices: int, room: int, sample: Sample) -> None:
    path, meta = sample.folder / "s.h5", frame_meta(sample.frames[0])
    create_shard(path, sample.frames[0], meta.digest, ORIGIN, 2, devices)
    with open_h5(path) as file:
        assert file["used"].shape == (room * USED_BYTES,)


def test_room_for_embeddings_and_checksums_is_asked_for_before_anything_is_written(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def fallocate(_: int, *place: int) -> int:
        asked.append(place[-1])
        return 0

    monkeypatch.setattr("virnucpro_core.embedding.hdf5._libc", SimpleNamespace(fallocate=fallocate))
    meta = frame_meta(sample.frames[0])
    create_shard(sample.folder / "s.h5", sample.frames[0], meta.digest, ORIGIN, 7)
    assert asked[0] == meta.rows * (7 * 4 + 4)


def test_sealed_shard_is_on_disk_after_all_that_is_written_to_it(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    write, sync = os.pwrite, os.fsync

    def pwrite(file: int, data: bytes, at: int) -> int:
        done.append("write")
        return write(file, data, at)

    def fsync(file: int) -> None:
        done.append("sync")
        sync(file)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fsync", fsync)
    seal(sample.shards[0], np.zeros(EmbeddingFile(sample.shards[0]).rows, np.uint32), [])
    assert done == ["write", "write", "sync"]


def test_value_that_is_not_finite_or_damaged_is_named_by_its_frame(sample: Sample) -> None:
    path, table = sample.folder / "s.h5", sample.frames[0]
    ids = pq.read_table(table)["frame_id"].to_pylist()
    create_shard(path, table, "d", ORIGIN, 2)
    values = np.ones((len(ids), 2), np.float32)
    values[3, 1] = np.inf
    sums = write_rows(path, [values])
    for at, what in ((3, "not finite"), (2, "damaged")):
        seal(path, sums, [])
        with pytest.raises(
            InputError, match=rf"embedding of {re.escape(ids[at])} is {what}; embed"
        ):
            list(EmbeddingFile(path).parts())
        sums[2] ^= 1


def one(device: str, **said: Any) -> dict[str, Any]:
    return {"device": device, "precision": "fp16", "peak_bytes": 5, **said}


def test_devices_that_embedded_are_told_once_with_the_sum_of_their_work() -> None:
    said = [
        one("A", seconds=1.5),
        one("B", seconds=0.25, tasks=2),
        one("A", seconds=2.0004, peak_bytes=9, tasks=3),
        one("A", precision="bf16"),
        one("A", peak_bytes=7),
    ]
    assert _together(said) == [
        one("A", tasks=5, seconds=3.5, peak_bytes=9, gpus=[]),
        one("B", tasks=2, seconds=0.25, gpus=[]),
        one("A", precision="bf16", tasks=1, seconds=0.0, gpus=[]),
    ]


@pytest.mark.parametrize("more", [0, 1, 40])
def test_what_a_device_says_fits_into_its_room_to_the_byte(more: int) -> None:
    used = _together([one("A", gpus=[sampled(POINTS)])])
    whole = json.dumps(used).encode()
    assert _fitting(used, len(whole) + more) == whole + b" " * more
    short = _fitting(used, len(whole) - 1)
    assert len(short) == len(whole) - 1
    (again,) = json.loads(short)
    assert len(again["gpus"][0]["busy"]) == POINTS // 2
    bare = json.loads(_fitting(used, 200))
    assert bare[0]["gpus"] == []


def test_merged_shards_that_are_others_now_are_refused(sample: Sample) -> None:
    merged = sample.folder / "e.h5"
    merge(sample.shards, sample.frames, merged)
    meta = frame_meta(sample.frames[0])
    for digest, dim in (("0" * 64, 2), (meta.digest, 3)):
        create_shard(sample.shards[0], sample.frames[0], digest, sample.origin, dim)
        with pytest.raises(InputError, match="is not the shard that was merged; merge again"):
            EmbeddingFile(merged)
