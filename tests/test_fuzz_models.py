"""Files of models damaged in every way: a sentence and 2 or 3, and nothing else.

The list is one, not drawn anew at each run: what fails once fails again.
"""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from archives import archive, text
from damage import DEEP, ODD, at_most, damaged_json, outcome
from safetensors.torch import load_file, save_file
from tiny import save_dnabert_s, save_esm2, write_tiny_model

import virnucpro_core as vnp
from virnucpro_core.errors import ModelError
from virnucpro_core.models.classifier import load_classifier
from virnucpro_core.models.dnabert_s import load_dnabert_s
from virnucpro_core.models.esm2 import load_esm2
from virnucpro_core.models.gate import STORED, passed
from virnucpro_core.models.store import list_models, resolve_model, verify
from virnucpro_core.published.checkpoints import read_state_dict

pytestmark = pytest.mark.usefixtures("one_thread")


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
