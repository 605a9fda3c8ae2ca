"""Rows written in place, their journal, and the threads around the model."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from contextlib import closing
from itertools import count
from pathlib import Path
from pickle import dumps
from threading import Event, Timer

import numpy as np
import pytest
from sample import Sample
from tiny import repeated_frames

from virnucpro_core.embedding import engine
from virnucpro_core.embedding.engine import SHARD, Job, begin, embed, embed_rank, finish, origin_of
from virnucpro_core.embedding.journal import Finished, RowWriter
from virnucpro_core.embedding.prefetch import AHEAD, prefetch, side_by_side
from virnucpro_core.embedding.shards import EmbeddingFile, create_shard, seal
from virnucpro_core.embedding.timing import Stages
from virnucpro_core.errors import MachineError, VirNucProError
from virnucpro_core.models.store import Model
from virnucpro_core.parquet import frame_meta


@pytest.fixture
def rows(sample: Sample) -> int:
    """A shard of so many rows of two values, `s.h5`, that has none of them yet."""
    table = sample.frames[0]
    meta = frame_meta(table)
    create_shard(sample.folder / "s.h5", table, meta.digest, sample.origin, 2)
    return meta.rows


def write(folder: Path, rank: int, *rows: int, add: float = 0.0) -> None:
    with closing(RowWriter(folder / "s.h5", folder / f"rank{rank}.journal", Stages())) as writer:
        for row in rows:
            writer.add(np.array([row]), np.array([[row + add, -row]], np.float32))


def two_records(folder: Path) -> tuple[Path, int, bytes]:
    """A journal of rows 0 and 1: where it is, the bytes of its first record, and of both."""
    journal = folder / "rank0.journal"
    write(folder, 0, 0)
    one = journal.stat().st_size
    write(folder, 0, 1)
    return journal, one, journal.read_bytes()


def test_rows_of_several_writers_in_any_order_are_read_in_the_tables(
    sample: Sample, rows: int
) -> None:
    folder = sample.folder
    write(folder, 1, *range(rows - 1, 2, -2))
    write(folder, 0, *range(rows - 2, 2, -2))
    write(folder, 0, 0, 2, 1)
    finished = Finished(folder, rows)
    finished.verify(folder / "s.h5")
    assert finished.done.all()
    seal(folder / "s.h5", finished.checksum, [])
    ((_, values),) = EmbeddingFile(folder / "s.h5").parts()
    assert np.array_equal(values, np.stack([np.arange(rows), -np.arange(rows)], 1))


def test_journal_is_its_user_s_to_write_again_and_others_by_the_umask(
    sample: Sample, rows: int
) -> None:
    before = os.umask(0o027)
    try:
        write(sample.folder, 0, 0)
    finally:
        os.umask(before)
    assert (sample.folder / "rank0.journal").stat().st_mode & 0o7777 == 0o640


def test_journal_cut_anywhere_vouches_for_whole_records_alone(sample: Sample, rows: int) -> None:
    """A kill may leave any part of the last record; the next run writes over it."""
    folder = sample.folder
    journal, one, whole = two_records(folder)
    for size in range(one, len(whole)):
        journal.write_bytes(whole[:size])
        assert Finished(folder, rows).done.sum() == 1
        write(folder, 0, 2)
        assert np.flatnonzero(Finished(folder, rows).done).tolist() == [0, 2]


def test_journal_with_a_flipped_bit_vouches_for_the_records_before_it_alone(
    sample: Sample, rows: int
) -> None:
    journal, one, whole = two_records(sample.folder)
    for at in range(one, len(whole)):
        journal.write_bytes(whole[:at] + bytes([whole[at] ^ 2]) + whole[at + 1 :])
        assert np.flatnonzero(Finished(sample.folder, rows).done).tolist() == [0]


def test_row_that_was_damaged_and_written_again_is_vouched_for_by_its_new_record(
    sample: Sample, rows: int
) -> None:
    """The old one lies in the journal of a process that this run no longer has."""
    folder = sample.folder
    write(folder, 1, 0, 1)
    with (folder / "s.h5").open("rb+") as file:
        at = file.read().index(np.array([1, -1], "<f4").tobytes())
        file.seek(at)
        file.write(b"\1")
    finished = Finished(folder, rows)
    finished.verify(folder / "s.h5")
    assert np.flatnonzero(finished.done).tolist() == [0]
    write(folder, 0, 1, add=0.5)
    finished = Finished(folder, rows)
    finished.verify(folder / "s.h5")
    assert np.flatnonzero(finished.done).tolist() == [0, 1]


def test_journal_or_record_of_a_device_on_a_disk_that_fails_is_named(
    sample: Sample, rows: int
) -> None:
    folder, failing = sample.folder, Path("/proc/self/mem")  # reading its start is an EIO
    write(folder, 0, *range(rows))
    (folder / "s.h5").rename(folder / SHARD)
    (folder / "used0.0.jsonl").symlink_to(failing)
    with pytest.raises(MachineError, match=f"{folder}: Input/output error"):
        finish(folder, folder / "out.h5", rows)
    (folder / "rank1.journal").symlink_to(failing)
    for read in (
        lambda: Finished(folder, rows),
        lambda: RowWriter(folder / SHARD, folder / "rank1.journal", Stages()),
    ):
        with pytest.raises(MachineError, match=r"rank1\.journal: Input/output error"):
            read()


def test_journal_of_a_longer_table_is_no_index_error(sample: Sample, rows: int) -> None:
    write(sample.folder, 0, 0)
    assert Finished(sample.folder, 0).done.shape == (0,)


def test_journal_is_written_after_its_rows_are_on_disk(
    sample: Sample, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order in which a machine that loses power must not catch them reversed."""
    calls: list[str] = []
    real_write, real_sync = os.pwrite, os.fdatasync

    def name(file: int) -> str:
        return Path(f"/proc/self/fd/{file}").readlink().name

    def pwrite(file: int, data: bytes, at: int) -> int:
        calls.append(f"write {name(file)}")
        return real_write(file, data, at)

    def fdatasync(file: int) -> None:
        calls.append(f"sync {name(file)}")
        real_sync(file)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    write(sample.folder, 0, 0)
    assert calls == ["write s.h5", "sync s.h5", "write rank0.journal", "sync rank0.journal"]


@pytest.mark.parametrize(("further", "seconds"), [([], 9), ([], 0), ([1], 0), ([1, 2, 3], 0)])
@pytest.mark.parametrize("fails", [1, 2])
def test_rows_that_could_not_be_written_are_an_error_at_the_end(
    fails: int,
    further: list[int],
    seconds: float,
    sample: Sample,
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each write syncs the shard, then the journal."""
    synced = count(1)

    def fdatasync(_: int) -> None:
        if next(synced) == fails:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    monkeypatch.setattr("virnucpro_core.embedding.journal.FLUSH_SECONDS", seconds)
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(MachineError, match=r"s\.h5: Input/output error"):
        write(sample.folder, 0, 0, *further)
    assert set(Path("/proc/self/fd").iterdir()) == before
    assert not any(thread.name.startswith("write") for thread in threading.enumerate())


def test_rows_are_written_only_where_there_is_memory_for_a_thread(
    sample: Sample, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def need_room() -> None:
        raise MemoryError

    monkeypatch.setattr("virnucpro_core.embedding.journal.need_room", need_room)
    with pytest.raises(MemoryError):
        write(sample.folder, 0, 0)
    assert not Finished(sample.folder, rows).done.any()


def test_side_by_side_closed_early_begins_nothing_more() -> None:
    go, begun = Event(), []

    def work(item: int) -> int:
        begun.append(item)
        if item:
            go.wait()
        return item

    results = side_by_side(work, range(100), 2)
    assert next(results) == 0
    while len(begun) < 3:  # on a busy machine a thread may be slow to take what it was given
        time.sleep(0.01)
    Timer(0.2, go.set).start()
    results.close()
    assert sorted(begun) == [0, 1, 2]


def test_prefetch_closed_early_ends_a_thread_that_waits_for_room() -> None:
    read: list[int] = []
    items = prefetch(read.append(n) or n for n in count())  # type: ignore[func-returns-value]
    assert next(items) == 0
    while len(read) < AHEAD + 2:  # one more than there is room for
        time.sleep(0.01)
    items.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_half_records_of_devices_are_passed_over(
    edge_frames: Path, tiny: Model, tmp_path: Path
) -> None:
    folder, meta = tmp_path / "work", frame_meta(edge_frames)
    folder.mkdir()
    begin(folder, edge_frames, meta, origin_of(tiny, "fp32"), tiny.dim)
    embed_rank(Job(edge_frames, tiny, "fp32", None, folder), "cpu", 0, 1, Event())
    record = folder / "used0.0.jsonl"
    first, second = record.read_text().splitlines(True)
    assert json.loads(first)["seconds"] < json.loads(second)["seconds"]
    record.write_text(first + second[:-1])
    (folder / "used1.0.jsonl").write_text(first[:-1])
    finish(folder, tmp_path / "shard.h5", meta.rows)
    (used,) = EmbeddingFile(tmp_path / "shard.h5").used()
    assert (used["tasks"], used["seconds"]) == (1, json.loads(first)["seconds"])


def test_job_of_many_rows_fits_into_a_pipe_so_that_workers_start_side_by_side(
    edge: Path, tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = repeated_frames(edge, tmp_path, 300)
    sizes: list[int] = []
    monkeypatch.setattr(engine, "run_ranks", lambda _, job, *__: sizes.append(len(dumps(job))))
    with pytest.raises(VirNucProError, match="some frames were not embedded"):
        embed(frames, tmp_path / "shard.h5", tiny, devices="cpu,cpu")
    assert frame_meta(frames).rows > 4096 > sizes[0]


def test_flush_waits_for_seconds_or_bytes_not_for_each_batch(
    sample: Sample, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(np.arange(0, 1000, 0.5).tolist())
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    synced: list[int] = []
    monkeypatch.setattr("os.fdatasync", synced.append)
    write(sample.folder, 0, *[0] * 100)
    assert 2 * 8 < len(synced) < 2 * 30
