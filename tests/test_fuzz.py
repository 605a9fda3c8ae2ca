"""Files damaged in every way that a list can hold: a sentence and 2 or 3, and nothing else.

The list is one, not drawn anew at each run: what fails once fails again.
"""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from archives import archive, text
from damage import DEEP, ODD, at_most, damaged_json, outcome
from safetensors.torch import load_file, save_file
from sample import Sample
from tiny import save_dnabert_s, save_esm2, write_tiny_model

import virnucpro_core as vnp
from virnucpro_core.errors import InputError, ModelError
from virnucpro_core.inputs import RECORD, Input, read_record, same, write_record
from virnucpro_core.models.classifier import load_classifier
from virnucpro_core.models.dnabert_s import load_dnabert_s
from virnucpro_core.models.esm2 import load_esm2
from virnucpro_core.models.gate import STORED, passed
from virnucpro_core.models.store import list_models, resolve_model, verify
from virnucpro_core.parquet import frame_batches, frame_meta, inventory_batches
from virnucpro_core.published.checkpoints import read_state_dict
from virnucpro_core.results.kept import refuse_other
from virnucpro_core.results.report import write_report
from virnucpro_core.results.tables import read_contigs


def _use(root: Path, part: str) -> None:
    """What is read of a model for one of its parts, with an encoder run once."""
    model = resolve_model("tiny", root)
    match part:
        case "model.json":
            list_models(root)
            verify(model)
            load_classifier(model.classifier)
        case "dnabert_s":
            load_dnabert_s(model.nucleotide).embed(["ACGTNNACG"])
        case "esm2":
            load_esm2(model.protein).embed(["MKV"])


def _as_recorded(folder: Path, file: str) -> None:
    """Let a model's description hold the sha256 of a damaged file, so that its reader sees it."""
    about = json.loads((folder / "model.json").read_text())
    about["weights"][file] = sha256((folder / file).read_bytes()).hexdigest()
    (folder / "model.json").write_text(json.dumps(about))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost more than they give where all is tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "root").folder


@pytest.mark.parametrize(
    "file", ["model.json", "dnabert_s/config.json", "esm2/config.json", "dnabert_s/tokenizer.json"]
)
def test_model_json_of_any_damage_is_used_or_refused(file: str, folder: Path) -> None:
    found: Counter[str] = Counter()
    whole, part = (folder / file).read_bytes(), file.split("/")[0]
    for content in damaged_json(whole):
        (folder / file).write_bytes(content)
        if file != "model.json":
            _as_recorded(folder, file)
        found[outcome(ModelError, lambda: _use(folder.parent, part))] += 1
    assert found["refused"] > 100
    (folder / file).unlink()
    os.mkfifo(folder / file)  # nothing waits for a writer
    assert outcome(ModelError, lambda: _use(folder.parent, part)) == "refused"


@pytest.mark.parametrize(
    ("file", "key", "value", "mentions"),
    [
        ("dnabert_s", "num_hidden_layers", 300_000, "says .* 300000, its weights have 2"),
        ("dnabert_s", "num_hidden_layers", 1, "says .* 1, its weights have 2"),
        ("esm2", "num_hidden_layers", 2**31 - 1, "its weights have 2"),
        ("dnabert_s", "vocab_size", 2**31 - 1, "its weights have 64"),
        ("dnabert_s", "intermediate_size", 10**9, "its weights have 40"),
        ("esm2", "hidden_size", 10**9, "its weights have 32"),
        ("esm2", "hidden_size", "32", "its weights have 32"),
        ("dnabert_s", "num_attention_heads", 0, "0 heads, which do not share 24"),
        ("dnabert_s", "num_attention_heads", 5, "5 heads, which do not share 24"),
        ("esm2", "num_attention_heads", 5, "heads, which do not share 32"),
        ("esm2", "num_attention_heads", 32, "heads, which do not share 32"),
        ("esm2", "num_attention_heads", True, "True heads"),
        ("esm2", "token_dropout", "false", "'token_dropout'"),
        ("dnabert_s", "layer_norm_eps", "1e-12", "'eps'"),
        ("dnabert_s", "layer_norm_eps", float("nan"), "'eps'"),
        ("dnabert_s", "layer_norm_eps", -1e-5, "'eps'"),
    ],
)
def test_published_configuration_that_its_weights_contradict_is_refused_at_once(
    file: str, key: str, value: object, mentions: str, tmp_path: Path
) -> None:
    {"esm2": save_esm2, "dnabert_s": save_dnabert_s}[file](tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    load = {"esm2": vnp.load_esm2, "dnabert_s": vnp.load_dnabert_s}[file]
    with at_most(5), pytest.raises(ModelError, match=mentions):
        load(tmp_path)


@pytest.mark.parametrize("file", ["esm2", "dnabert_s"])
def test_published_configuration_of_any_damage_is_used_or_refused(
    file: str, tmp_path: Path
) -> None:
    {"esm2": save_esm2, "dnabert_s": save_dnabert_s}[file](tmp_path)
    path = tmp_path / "config.json"
    found: Counter[str] = Counter()
    for content in damaged_json(path.read_bytes()):
        path.write_bytes(content)
        load = {"esm2": vnp.load_esm2, "dnabert_s": vnp.load_dnabert_s}[file]
        found[outcome(ModelError, lambda load=load: load(tmp_path))] += 1  # type: ignore[misc]
    assert found["refused"] > 100


@pytest.mark.parametrize("part", ["esm2", "dnabert_s"])
def test_weights_of_any_number_of_layers_are_refused_unless_they_are_whole(
    part: str, folder: Path
) -> None:
    """Sizes come from the weights, so what they lie about is what is missing."""
    path = folder / part / "model.safetensors"
    whole = load_file(path)
    load = {"esm2": load_esm2, "dnabert_s": load_dnabert_s}[part]
    for extra in ("layers.2.out.weight", "layers.999999999.x", "layers.-1.x"):
        save_file({**whole, extra: torch.ones(1)}, path)
        outcome_is = outcome(ModelError, lambda: load(folder / part))
        assert outcome_is == ("used" if "-1" in extra else "refused"), extra
    save_file({name: tensor for name, tensor in whole.items() if "layers.1." not in name}, path)
    assert len(list(load(folder / part).layers.children())) == 1  # type: ignore[union-attr]
    wide = {
        "embedding.weight": torch.zeros(33, 1 << 16),
        "layers.0.down.weight": whole["layers.0.down.weight"],
    }
    save_file({**whole, **wide}, path)
    with at_most(5):
        assert outcome(ModelError, lambda: load(folder / part)) == "refused"
    save_file({**whole, "embedding.weight": torch.zeros(0, 1 << 40)}, path)
    with pytest.raises(ModelError, match=r"lacks the weight 'embedding\.weight'"):
        load(folder / part)


@pytest.mark.parametrize("place", ["vocabulary", "special token"])
def test_tokenizer_with_an_id_beyond_the_vocabulary_is_refused(place: str, folder: Path) -> None:
    path = folder / "dnabert_s/tokenizer.json"
    document = json.loads(path.read_text())
    if place == "vocabulary":
        document["model"]["vocab"]["N"] = document["model"]["vocab"]["A"] = 64
    else:
        document["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [64]
    path.write_text(json.dumps(document))
    with pytest.raises(ModelError, match=r"tokenizer\.json: .*beyond the encoder's 64"):
        load_dnabert_s(path.parent).embed(["ACGTN"])


def test_weights_of_other_shapes_or_dtypes_are_refused_or_finite(folder: Path) -> None:
    loaders = {"esm2": load_esm2, "dnabert_s": load_dnabert_s}
    for part, load in loaders.items():
        path = folder / part / "model.safetensors"
        whole = load_file(path)
        for name, tensor in whole.items():
            for other in (
                tensor[:-1].contiguous(),
                tensor[None].contiguous(),
                torch.tensor(1.0),
                tensor[:0].contiguous(),
                tensor.to(torch.int8),
                tensor > 0,
                tensor.double() + 1e300,
                tensor * torch.nan,
            ):
                save_file({**whole, name: other}, path)
                known = outcome(ModelError, lambda load=load, part=part: load(folder / part))  # type: ignore[misc]
                # fewer byte pairs are another vocabulary, whose tokenizer is held to it
                fewer = (part, name) == ("dnabert_s", "embedding.weight") and other.ndim == 2
                assert known == "refused" or other.shape == tensor.shape or fewer, name
        save_file(whole, path)


def test_safetensors_headers_of_any_kind_are_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    kinds = "F64 F32 F16 BF16 F8_E4M3 F8_E5M2 F8_E8M0 F4 F6_E2M3 I64 I8 U64 U16 U8 BOOL C64 X9"
    found: Counter[str] = Counter()
    for kind in (*kinds.split(), None, 3):
        for size in (0, 1, 4, 16, 32):
            for shape in ([4], [2, 2], [0], [], [-1], [1 << 62, 4], "4", None, [4.0]):
                entry = {"dtype": kind, "shape": shape, "data_offsets": [0, size]}
                header = json.dumps({"w": entry}).encode()
                path.write_bytes(struct.pack("<Q", len(header)) + header + b"\1" * size)
                found[outcome(ModelError, lambda: read_state_dict(path))] += 1
    assert found["used"] > 10
    assert found["refused"] > 500


def test_checkpoint_of_modules_nested_thousands_deep_is_refused(tmp_path: Path) -> None:
    head = b"c__main__\nMLPClassifier\n)\x81}" + b"".join(
        text(name) + b"}s" for name in ("_parameters", "_buffers")
    )
    module = head + text("_modules") + b"}" + text("inner")
    archive(tmp_path / "deep.pth", b"\x80\x02" + module * 3000 + b"N" + b"ssb" * 3000 + b".")
    with pytest.raises(ModelError, match="modules within each other"):
        read_state_dict(tmp_path / "deep.pth")


def test_index_that_names_itself_or_what_is_no_file_is_refused(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for shard in (index.name, "other.json", "", ".", "..", "a/b", "\0", "/x", 3, None, ["a"]):
        index.write_text(json.dumps({"weight_map": {"w": shard}}))
        assert outcome(ModelError, lambda: read_state_dict(index)) == "refused", shard


def test_validation_of_any_damage_opens_no_gate(folder: Path) -> None:
    model = resolve_model("tiny", folder.parent)
    for content in (b"", b"{", DEEP, b"\xff", *(json.dumps(odd).encode() for odd in ODD)):
        (folder / STORED).write_bytes(content)
        assert not passed(model, "fp8")


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
    write_record(tmp_path, given)
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
