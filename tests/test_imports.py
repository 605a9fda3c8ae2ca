"""Importing models: what is written, what is refused, and what a broken import leaves."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hugging_face import save_esm2
from safetensors.torch import load_file
from tiny import fair_esm, save_dnabert_s

import virnucpro_core as vnp
from virnucpro_core.errors import (
    InputError,
    MachineError,
    ModelError,
)
from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.models.esm2 import ESM2, load_esm2
from virnucpro_core.models.store import (
    FILES,
    MODEL_FORMAT,
    Model,
    resolve_model,
    verify,
)
from virnucpro_core.published.imports import import_model


def bring_in(
    model: Model, root: Path, name: str = "mine", *, shared: Any = False, **parts: Path
) -> Model:
    return import_model(
        name,
        dnabert_s=parts.get("dnabert_s", model.nucleotide),
        esm2=parts.get("esm2", model.protein),
        classifier=parts.get("classifier", model.classifier),
        models_dir=root,
        window=60,
        shared=shared,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_import_of_published_files_embeds_as_they_do_to_the_bit(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    source = fair_esm(tmp_path / "esm2_t2.pt", 2, 32, 4, dtype)
    save_dnabert_s(tmp_path / "DNABERT-S")
    torch.save(MLPClassifier(56, 8).state_dict(), tmp_path / "300_model.pth")
    model = import_model(
        "virnucpro-300",
        dnabert_s=tmp_path / "DNABERT-S",
        esm2=source,
        classifier=tmp_path / "300_model.pth",
        models_dir=tmp_path / "models",
    )
    assert model.window == 300
    assert {str(f.relative_to(model.folder)) for f in model.folder.rglob("*.*")} == {
        *FILES,
        "model.json",
    }
    for precision in ("fp32", "bf16", "fp16"):
        expected = vnp.load_esm2(source).embed(["MKV", "LAGWWY"], precision=precision)
        found = load_esm2(model.protein).embed(["MKV", "LAGWWY"], precision=precision)
        assert np.array_equal(found, expected)
    expected = vnp.load_dnabert_s(tmp_path / "DNABERT-S").embed(["ACGTTT"])
    assert np.array_equal(vnp.load_dnabert_s(model.nucleotide).embed(["ACGTTT"]), expected)
    x = torch.randn(3, 56)
    logits = vnp.load_classifier(tmp_path / "300_model.pth")(x)
    assert torch.equal(vnp.load_classifier(model.classifier)(x), logits)


def test_import_stores_in_fp16_what_loses_nothing_there(tiny: Model, tmp_path: Path) -> None:
    module = ESM2(2, 32, 4).half().float()
    module.norm.bias.data[3] = 1 / 3
    module.norm.weight.data[0] = 1e5  # beyond fp16
    save_esm2(tmp_path / "hf", module)
    model = bring_in(tiny, tmp_path, esm2=tmp_path / "hf")
    stored = load_file(model.protein / "model.safetensors")
    wide = {name for name, tensor in stored.items() if tensor.dtype != torch.float16}
    assert wide == {"norm.bias", "norm.weight"}
    about = json.loads((model.folder / "model.json").read_text())
    assert about["format"] == MODEL_FORMAT
    assert about["stored"]["esm2/model.safetensors"] == {"F32": 2, "F16": len(stored) - 2}
    for name, tensor in module.state_dict().items():
        assert torch.equal(stored[name].float(), tensor)


def test_import_again_of_what_was_imported_writes_the_same_bytes(
    tiny: Model, tmp_path: Path
) -> None:
    first = bring_in(tiny, tmp_path, "first")
    assert first.weights == tiny.weights
    for shared in (False, True):
        again = bring_in(first, tmp_path, "first", shared=shared)
        assert again.weights == tiny.weights, "in place"
    verify(again)
    assert not list(tmp_path.rglob(".*.link"))


def test_shared_import_links_our_own_files_and_copies_where_it_cannot(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bring_in(tiny, tmp_path, "first")
    file = "esm2/model.safetensors"
    second = bring_in(first, tmp_path, "second", shared=True)
    assert second.path(file).samefile(first.path(file))

    def refused(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(self))

    monkeypatch.setattr(Path, "hardlink_to", refused)
    third = bring_in(first, tmp_path, "third", shared=True)
    assert not third.path(file).samefile(first.path(file))
    assert third.weights == first.weights


def test_written_weights_lie_where_their_width_divides(tiny: Model, tmp_path: Path) -> None:
    """As safetensors asks of a file; a bias of odd length would shift all that is wider."""
    state: dict[str, Any] = MLPClassifier(56, 5).state_dict()
    state["output_layer.weight"][0, 0] = 1 / 3
    torch.save(state, tmp_path / "odd.pth")
    model = bring_in(tiny, tmp_path, classifier=tmp_path / "odd.pth")
    content = model.classifier.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert length % 8 == 0
    widths = {"I64": 8, "F32": 4, "F16": 2}
    head = json.loads(content[8 : 8 + length])
    head.pop("__metadata__")
    assert {entry["dtype"] for entry in head.values()} == set(widths)
    assert not any(e["data_offsets"][0] % widths[e["dtype"]] for e in head.values())


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../b", "a b"])
def test_import_name_that_is_no_folder_is_refused(tiny: Model, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="names no folder"):
        bring_in(tiny, tmp_path / "models", name)
    assert not list(tmp_path.iterdir())


def test_import_of_the_current_folder_is_stored_as_any_other(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.protein)
    model = bring_in(tiny, tmp_path, esm2=Path())
    assert model.protein == tmp_path / "mine" / "esm2"
    verify(model)


@pytest.mark.parametrize("what", ["weights", "tokenizer", "classifier", "nan", "variance"])
def test_import_of_a_broken_part_leaves_the_model_that_was_there(
    tiny: Model, tmp_path: Path, what: str
) -> None:
    before = bring_in(tiny, tmp_path)
    part = tmp_path / "part"
    state = MLPClassifier(56, 8).state_dict()
    match what:
        case "weights" | "tokenizer":
            shutil.copytree(tiny.nucleotide, part)
            name = "model.safetensors" if what == "weights" else "tokenizer.json"
            (part / name).write_bytes((part / name).read_bytes()[:-200])
        case "nan":
            state["output_layer.bias"][0] = torch.nan
        case "variance":
            state["bn1.running_var"][0] = -1
        case "classifier":
            state = MLPClassifier(55, 8).state_dict()
    if not part.exists():
        torch.save(state, part)
    given = {"dnabert_s" if part.is_dir() else "classifier": part}
    with pytest.raises(ModelError):
        bring_in(tiny, tmp_path, "mine", **given)
    assert resolve_model("mine", tmp_path) == before
    verify(before)


def test_import_without_a_tokenizer_is_refused(tiny: Model, tmp_path: Path) -> None:
    save_dnabert_s(tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json: cannot be read"):
        bring_in(tiny, tmp_path / "models", dnabert_s=tmp_path / "bare")
    assert not (tmp_path / "models").exists()


def test_import_that_breaks_off_leaves_no_record_of_what_it_replaced(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_in(tiny, tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(MachineError, match="File too large"):
            bring_in(tiny, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(InputError, match="'mine' is not known"):
        resolve_model("mine", tmp_path)
    verify(bring_in(tiny, tmp_path))


def test_import_holds_one_tensor_at_a_time(tiny: Model, tmp_path: Path) -> None:
    """430 MB of fair-esm's weights are imported in far less memory of the process's own."""
    fair_esm(tmp_path / "large.pt", 12, 832, 16, torch.float32)
    torch.save(MLPClassifier(24 + 832, 8).state_dict(), tmp_path / "head.pth")
    code = (
        "import sys; from pathlib import Path; import torch\n"
        "from virnucpro_core.published.imports import import_model\n"
        "def own(): return int(open('/proc/self/status').read().split('RssAnon:')[1].split()[0])\n"
        "peak, write = [], torch.Tensor.reshape\n"
        "def watched(*a, **b): peak.append(own()); return write(*a, **b)\n"
        "torch.Tensor.reshape = watched\n"
        "before = own()\n"
        "import_model('large', dnabert_s=Path(sys.argv[1]), esm2=Path(sys.argv[2]),"
        " classifier=Path(sys.argv[3]), models_dir=Path(sys.argv[4]), window=60)\n"
        "print(max(peak) - before)\n"
    )
    parts = [tiny.nucleotide, tmp_path / "large.pt", tmp_path / "head.pth", tmp_path / "models"]
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, parts)], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 150_000, "kB"
