"""What the machine lacks or breaks is no verdict on the file that is read."""

from __future__ import annotations

import bz2
import errno
import gc
import gzip
import json
import resource
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sample import Sample
from tiny import write_tiny_model

import virnucpro_core as vnp
from virnucpro_core.errors import InputError, MachineError
from virnucpro_core.models.classifier import load_classifier
from virnucpro_core.models.dnabert_s import load_dnabert_s
from virnucpro_core.models.esm2 import load_esm2
from virnucpro_core.models.gate import STORED, passed
from virnucpro_core.models.store import resolve_model, verify
from virnucpro_core.parquet import (
    FrameMeta,
    _checked,
    contigs_in,
    frame_batches,
    frame_meta,
    inventory_batches,
    one_genetic_code,
    scored_batches,
    table_writer,
)
from virnucpro_core.published.checkpoints import read_state_dict, read_weight_map
from virnucpro_core.results.kept import MADE, kept_scores, read_summary
from virnucpro_core.schema import HALVES
from virnucpro_core.sequences.fasta import read_fasta
from virnucpro_core.sequences.tokens import NucleotideTokenizer

ORIGINAL = Path(__file__).parent / "data/classifier/original_style_model.pth"
FAILS = Path("/proc/self/mem")
"""A file that opens and whose first bytes give EIO, as on a disk that fails."""


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def readers(sample: Sample, folder: Path) -> dict[str, Callable[[], object]]:
    """Every reader of the package, on a whole file."""
    fasta = (sample.folder / "in.fa").read_bytes()
    packed = {"plain": fasta, "gz": gzip.compress(fasta), "bz2": bz2.compress(fasta)}
    packed["zst"] = pa.compress(fasta, codec="zstd", asbytes=True)
    for name, content in packed.items():
        (folder / name).write_bytes(content)
    model = write_tiny_model(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"w": "x.bin"}}')
    (model.folder / STORED).write_text("{}")
    return {
        **{name: lambda name=name: list(read_fasta([folder / name])) for name in packed},  # type: ignore[misc]
        "meta": lambda: frame_meta(sample.frames[0]),
        "frames": lambda: list(frame_batches(sample.frames[0])),
        "inventory": lambda: list(inventory_batches(sample.contigs)),
        "model": lambda: resolve_model("tiny", folder),
        "verify": lambda: verify(model),
        "validation": lambda: passed(model, "fp8"),
        "nucleotide": lambda: load_dnabert_s(model.nucleotide),
        "protein": lambda: load_esm2(model.protein),
        "safetensors": lambda: load_classifier(model.classifier),
        "checkpoint": lambda: vnp.load_classifier(ORIGINAL),
        "index": lambda: read_weight_map(index),
        "tokenizer": lambda: NucleotideTokenizer(model.nucleotide / "tokenizer.json"),
    }


def test_readers_without_a_descriptor_left_blame_the_machine(
    sample: Sample, tmp_path: Path
) -> None:
    for name, read in readers(sample, tmp_path).items():
        read()  # whatever it imports
        with no_descriptor_left(), pytest.raises(MachineError, match="Too many open files"):
            read()
        read()
        assert name


def test_readers_on_a_disk_that_fails_blame_the_machine(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path)
    for file, read in (
        ("in.fa", lambda path: list(read_fasta([path]))),
        ("a/config.json", lambda path: load_esm2(path.parent)),
        ("e/config.json", lambda path: vnp.load_dnabert_s(path.parent)),
        ("b/tokenizer.json", NucleotideTokenizer),
        ("c.pth", read_state_dict),
        ("d.index.json", read_state_dict),
        ("tiny/model.json", lambda _: resolve_model("tiny", tmp_path)),
        ("out/summary.json", lambda path: read_summary(path.parent)),
    ):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(FAILS)
        with pytest.raises(MachineError, match=f"{path}: Input/output error"):
            read(path)
    shutil.rmtree(model.folder)


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["score_other", "score_virus", *HALVES.names])
def test_scores_that_are_not_finite_are_refused_but_of_a_half(
    name: str, score: float, sample: Sample
) -> None:
    sample.classify()
    path = sample.folder / "out/frames.parquet"
    table = pq.read_table(path)
    column = pa.array([score, *[0.5] * (len(table) - 1)], pa.float32())
    with_scores(path, name, column)
    if name in HALVES.names:
        (_, scores), *_ = kept_scores(sample.folder / "out").batches
        assert not np.isfinite(scores[0, 2:]).all()
        column = column.cast(pa.float64())
        with_scores(path, name, column)
    with pytest.raises(InputError, match=f"{path}: holds a score that is not finite; embed"):
        list(kept_scores(sample.folder / "out").batches)


def with_scores(path: Path, name: str, column: pa.Array) -> None:
    """Put other values into a column of scored frames."""
    footer, table = pq.read_metadata(path).metadata, pq.read_table(path)
    if name in table.schema.names:
        table = table.drop_columns(name)
    table = table.append_column(name, column)
    said = {key: value for key, value in footer.items() if key == MADE.encode()}
    pq.write_table(table.replace_schema_metadata(said), path)


def test_scores_on_a_disk_that_fails_blame_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pq, "read_metadata", fail)
    with pytest.raises(MachineError, match=r"frames\.parquet: Input/output error"):
        kept_scores(tmp_path)


def test_batches_have_the_columns_that_are_asked_for(sample: Sample) -> None:
    assert next(frame_batches(sample.frames[0], ["window"])).schema.names == ["window"]
    assert next(inventory_batches(sample.contigs, ["length"])).schema.names == ["length"]
    sample.classify()
    scored = next(scored_batches(sample.folder / "out/frames.parquet", ["frame_id"]))
    assert scored.schema.names == ["frame_id", *HALVES.names]


def test_tables_that_are_not_there_are_named_with_what_makes_them(tmp_path: Path) -> None:
    path = tmp_path / "none.parquet"
    readers: list[tuple[Callable[[], Any], str]] = [
        (lambda: list(frame_batches(path)), "translate"),
        (lambda: frame_meta(path), "translate"),
        (lambda: list(inventory_batches(path)), "split"),
        (lambda: contigs_in(path), "split"),
        (lambda: list(scored_batches(path, ["contig"])), "classify"),
    ]
    for read, maker in readers:
        with pytest.raises(InputError, match=f"{path}: no such file; give .* `virnucpro {maker}`"):
            read()


def test_table_with_a_value_that_is_missing_is_refused(sample: Sample) -> None:
    path, whole = sample.frames[0], pq.read_table(sample.frames[0])
    for at, field in enumerate(whole.schema):
        none = pa.nulls(1, field.type).take(pa.array([0] * len(whole)))
        pq.write_table(whole.set_column(at, field.with_nullable(True), none), path)
        with pytest.raises(InputError, match=f"{path}: has a row without '{field.name}'; write"):
            list(frame_batches(path))


def test_table_with_text_that_is_none_is_refused(sample: Sample) -> None:
    path, whole = sample.contigs, pq.read_table(sample.contigs)
    at = whole.schema.get_field_index("contig")
    field = whole.schema.field(at)
    odd = pa.array([b"\xff" * 3] * len(whole), pa.binary()).view(field.type)
    pq.write_table(whole.set_column(at, field, odd), path)
    with pytest.raises(InputError, match=f"{path}: is damaged .*[Ii]nvalid UTF"):
        list(inventory_batches(path))


def test_tables_whose_columns_are_others_are_refused_with_the_column(sample: Sample) -> None:
    path, whole = sample.contigs, pq.read_table(sample.contigs)
    at = whole.schema.get_field_index("length")
    for table, said in (
        (whole.set_column(at, "length", whole["length"].cast(pa.int32())), "is int32, not int64"),
        (whole.drop_columns("length"), "has no column 'length'; give the contigs.parquet"),
        (whole.append_column("length", whole["length"]), "has no column 'length'; give the"),
    ):
        pq.write_table(table, path)
        with pytest.raises(InputError, match=f"{path}: .*{said}"):
            contigs_in(path)


@pytest.mark.parametrize("columns", [None, ["length", "sequence"]])
def test_inventory_whose_lengths_are_not_those_of_its_bases_is_refused(
    columns: list[str] | None, sample: Sample, tmp_path: Path
) -> None:
    table, path = pq.read_table(sample.contigs), tmp_path / "contigs.parquet"
    at = table.schema.get_field_index("length")
    longer = pc.add(table["length"], pa.scalar(1, table.schema.field(at).type))
    pq.write_table(table.set_column(at, table.schema.field(at), longer), path)
    with pytest.raises(InputError, match="a contig's length is not that of its bases; split again"):
        list(inventory_batches(path, columns))


def test_table_is_whole_once_it_is_finished(tmp_path: Path) -> None:
    """Older results are taken away after that, and only then."""
    batch = pa.record_batch({"x": pa.array([1, 2, 3])})
    with table_writer(tmp_path / "t.parquet", batch.schema) as writer:
        writer.write(batch)
        writer.finish()
        assert pq.read_table(tmp_path / "t.parquet").num_rows == 3


@pytest.mark.parametrize("cuts", [[0, 7], [0, 3, 7], [0, 0, 1, 6, 7, 7]])
def test_sums_in_a_table_s_footer_are_the_crc32_of_its_values_however_cut(
    cuts: list[int], tmp_path: Path
) -> None:
    texts, numbers = ["", "a", "bc", "", "déf", "", "g"], np.arange(7, dtype=np.int32)
    name = pa.array(["u", "u", "v", "v", "v", "u", ""]).dictionary_encode()
    batch = pa.record_batch({"text": pa.array(texts), "number": pa.array(numbers), "name": name})
    with table_writer(tmp_path / "t.parquet", batch.schema) as writer:
        for start, end in pairwise(cuts):
            writer.write(batch.slice(start, end - start))
        writer.finish({"said": "too"})
    footer = pq.read_metadata(tmp_path / "t.parquet").metadata
    assert footer[b"said"] == b"too"
    assert json.loads(footer[b"virnucpro.crc32"]) == {
        "text": zlib.crc32(np.array([len(text.encode()) for text in texts], np.int32).tobytes()),
        "text's text": zlib.crc32("".join(texts).encode()),
        "number": zlib.crc32(numbers.tobytes()),
        "name": zlib.crc32(np.array([1, 1, 1, 1, 1, 1, 0], np.int32).tobytes()),
        "name's text": zlib.crc32(b"uuvvvu"),
    }


def test_table_that_is_not_finished_ends_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end would write a footer, to a file that is closed."""
    lost: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lost.append)
    batch = pa.record_batch({"x": pa.array([1])})
    with suppress(ValueError), table_writer(tmp_path / "t.parquet", batch.schema) as writer:
        writer.write(batch)
        raise ValueError
    del writer
    gc.collect()
    assert not lost


def test_table_whose_disk_fails_half_way_blames_the_machine(sample: Sample) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        yield from whole
        raise OSError(errno.EIO, "Input/output error")

    path, whole = sample.frames[0], list(frame_batches(sample.frames[0], rows=1))[:2]
    with pytest.raises(MachineError, match=f"{path}: Input/output error"):
        list(_checked(path, pq.ParquetFile(path), batches()))


def test_damaged_page_never_comes_to_the_decoder(sample: Sample) -> None:
    path = sample.frames[0]
    column = pq.read_metadata(path).row_group(0).column(0)
    last = column.data_page_offset + column.total_compressed_size - 1
    content = bytearray(path.read_bytes())
    content[last] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"is damaged .*CRC checksum verification failed"):
        list(frame_batches(path))


@pytest.mark.parametrize("codes", [["1"], ["4", "4"], []])
def test_tables_of_one_genetic_code_are_of_that(codes: list[str]) -> None:
    metas = [(Path(str(i)), FrameMeta(60, False, code, {}, "", 0)) for i, code in enumerate(codes)]
    assert one_genetic_code(metas) == (codes or ["1"])[0]


def test_tables_of_two_genetic_codes_are_refused() -> None:
    metas = [(Path(code), FrameMeta(60, False, code, {}, "", 0)) for code in ("1", "11")]
    with pytest.raises(InputError, match="11: translated with genetic code 11, and 1 with 1"):
        one_genetic_code(metas)
