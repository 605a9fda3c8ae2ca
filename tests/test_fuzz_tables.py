"""Tables and records damaged in every way: a sentence and 2 or 3, and nothing else.

The list is one, not drawn anew at each run: what fails once fails again.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import damaged_json, outcome
from sample import Sample

from virnucpro_core.errors import InputError
from virnucpro_core.files import write_json
from virnucpro_core.inputs import RECORD, Input, read_record, same
from virnucpro_core.parquet import frame_batches, frame_meta, inventory_batches
from virnucpro_core.results.kept import refuse_other
from virnucpro_core.results.report import write_report
from virnucpro_core.results.tables import read_contigs

pytestmark = pytest.mark.usefixtures("one_thread")


def _rows(read: Callable[..., Iterator[pa.RecordBatch]], path: Path) -> pa.Table:
    return pa.Table.from_batches(list(read(path)))


@pytest.mark.parametrize("kind", ["frames", "inventory"])
def test_parquet_with_a_flipped_bit_is_refused_or_the_same(kind: str, sample: Sample) -> None:
    path, read = {
        "frames": (sample.frames[0], frame_batches),
        "inventory": (sample.contigs, inventory_batches),
    }[kind]
    whole, want = path.read_bytes(), _rows(read, path)
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    found: Counter[str] = Counter()
    for at in range(4, len(whole) - 8, 3):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        try:
            assert _rows(read, path).equals(want), f"byte {at}: other rows, and no word of it"
            found["same"] += 1
        except InputError:
            found["refused"] += 1
    assert found["refused"] > found["same"], "most are of a page's bytes"
    for length in (0, 3, 4, 12, footer, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert outcome(InputError, lambda: _rows(read, path)) == "refused"


def _retyped(table: pa.Table, at: int) -> Iterator[pa.Table]:
    """A table without a column, and with it under another name, in other types and with a null."""
    name, column = table.schema.names[at], table[at]
    yield table.drop_columns([name])
    yield table.rename_columns(["x" if other == name else other for other in table.schema.names])
    yield table.append_column(name, column)
    n = table.num_rows
    others: list[Any] = [
        pa.nulls(n, column.type),
        pa.nulls(n),
        pa.array([1.5] * n),
        pa.array([True] * n),
        pa.array([["a"]] * n),
        pa.array([{"a": 1}] * n),
        pa.array([b"\xff\xfe"] * n, pa.binary()),
        pa.array([1 << 40] * n, pa.timestamp("us")),
        pa.array(["x"] * n) if column.type != pa.string() else pa.array([1] * n),
    ]
    for other in others:
        yield table.set_column(at, name, other)


@pytest.mark.parametrize("kind", ["frames", "inventory"])
def test_classify_tables_of_other_columns_or_types_are_refused(kind: str, sample: Sample) -> None:
    path = {"frames": sample.frames[0], "inventory": sample.contigs}[kind]
    table, about = pq.read_table(path), pq.read_metadata(path).metadata
    for at in range(table.num_columns):
        for other in _retyped(table, at):
            with pq.ParquetWriter(path, other.schema) as writer:
                writer.write_table(other)
                writer.add_key_value_metadata({k: about[k] for k in about if k[:1] == b"v"})
            assert outcome(InputError, sample.classify) == "refused", other.schema.names
            assert not list(sample.folder.glob("out/*"))


def test_frame_table_whose_columns_moved_is_refused(sample: Sample) -> None:
    """What a flip in the footer, which Parquet does not check, once did in silence."""
    path = sample.frames[0]
    table = pq.read_table(path)
    about = {k: v for k, v in pq.read_metadata(path).metadata.items() if k[:1] == b"v"}
    for one, other in (("start", "end"), ("protein", "nucleotide"), ("contig", "frame")):
        swapped = {one: other, other: one}
        names = [swapped.get(name, name) for name in table.schema.names]
        with pq.ParquetWriter(path, table.schema) as writer:
            writer.write_table(table.select(names).rename_columns(table.schema.names))
            writer.add_key_value_metadata(about)
        with pytest.raises(InputError, match="is not as it was written"):
            list(frame_batches(path))


def test_frame_table_with_odd_metadata_is_refused(sample: Sample) -> None:
    path = sample.frames[0]
    table, about = pq.read_table(path), pq.read_metadata(path).metadata
    about = {key: about[key] for key in about if key[:1] == b"v"}

    def read() -> object:
        return frame_meta(path), list(frame_batches(path))

    for key in about:
        for value in (None, b"", b"x", b"-1", b"1.5", b"0", b"9" * 50, b"\xff", "٣".encode()):
            changed = {k: v for k, v in {**about, key: value}.items() if v is not None}
            with pq.ParquetWriter(path, table.schema) as writer:
                writer.write_table(table)
                writer.add_key_value_metadata(changed)
            if key != b"virnucpro.crc32" or value is not None:  # tables made by others have none
                assert outcome(InputError, read) == "refused", (key, value)


def test_inventory_whose_lengths_lie_is_refused(sample: Sample) -> None:
    table = pq.read_table(sample.contigs)
    for lie in (-1, 0, 10**15):
        lengths = pa.array([lie] * table.num_rows, pa.int64())
        pq.write_table(table.set_column(2, "length", lengths), sample.contigs)
        assert outcome(InputError, sample.classify) == "refused"
    path = sample.folder / "pipe"
    os.mkfifo(path)
    assert outcome(InputError, lambda: _rows(inventory_batches, path)) == "refused"


def test_summary_of_any_damage_is_reported_or_refused(sample: Sample) -> None:
    sample.classify()
    out, page = sample.folder / "out", sample.folder / "report.html"
    whole = (out / "summary.json").read_bytes()
    found: Counter[str] = Counter()
    for content in damaged_json(whole, (None, True, -1, float("inf"), "x", "\ud800", [1], {})):
        (out / "summary.json").write_bytes(content)
        found[outcome(InputError, lambda: write_report([out], page))] += 1
        outcome(InputError, lambda: refuse_other(out, [{"sha256": "x"}], force=False))
    assert found["refused"] > found["used"] / 4


def test_record_of_an_input_of_any_damage_is_another_input(tmp_path: Path) -> None:
    given: Input = [{"name": "a.fa", "bytes": 3, "sha256": "ab" * 32}]
    write_json(tmp_path / RECORD, given)
    assert same(read_record(tmp_path), given)
    other = [{**given[0], "sha256": "cd" * 32}]
    for content in damaged_json((tmp_path / RECORD).read_bytes()):
        (tmp_path / RECORD).write_bytes(content)
        assert not same(read_record(tmp_path), other)


def test_table_of_contigs_of_any_damage_is_reported_or_refused(sample: Sample) -> None:
    sample.classify()
    out, page = sample.folder / "out", sample.folder / "report.html"
    rows = [line.split("\t") for line in (out / "contigs.tsv").read_text().splitlines()]

    def use() -> None:
        write_report([out], page)
        read_contigs(out / "contigs.tsv")

    found: Counter[str] = Counter()
    cells = ("", "x", "-1", "1e999", "nan", "7.5", str(10**30), "\0", "virus", "\x85")
    for column in range(len(rows[0])):
        for row in (0, 1, 3):
            for cell in cells:
                damaged = [list(one) for one in rows]
                damaged[row][column] = cell
                text = "\n".join("\t".join(one) for one in damaged) + "\n"
                (out / "contigs.tsv").write_text(text)
                found[outcome(InputError, use)] += 1
        text = "\n".join("\t".join(one[:column] + one[column + 1 :]) for one in rows) + "\n"
        (out / "contigs.tsv").write_text(text)
        assert outcome(InputError, use) == "refused"
    for content in (b"", b"\n", b"\xff\xfe", b"contig\n", "\t".join(rows[0]).encode()):
        (out / "contigs.tsv").write_bytes(content)
        outcome(InputError, use)
    assert found["refused"] > 50
