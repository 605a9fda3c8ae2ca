"""Importing models: what is written, what is refused, and what a broken import leaves."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hugging_face import save_esm2
from safetensors.torch import load_file
from tiny import fair_esm, save_dnabert_s, write_tiny_model

import virnucpro_core as vnp
from virnucpro_core.errors import (
    ROOM,
    InputError,
    MachineError,
    ModelError,
    StoppedError,
    out_of_memory,
)
from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.models.esm2 import ESM2, load_esm2
from virnucpro_core.models.layout import Stored, read_weights
from virnucpro_core.models.store import (
    FILES,
    MODEL_FORMAT,
    PUBLISHED_WINDOWS,
    Model,
    list_models,
    models_folder,
    read_model,
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


def test_resolve_model_any_small_file_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path)
    for file in model.weights:
        path = model.folder / file
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))
        with pytest.raises(ModelError, match=rf"{file}: has sha256 .*, not .*; import tiny again"):
            resolve_model("tiny", tmp_path)
        path.write_bytes(whole)
    assert resolve_model("tiny", tmp_path) == model


def test_read_weights_of_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.safetensors: cannot be read \(No such file"):
        read_weights(tmp_path / "none.safetensors")


@contextmanager
def room(size: int) -> Iterator[None]:
    """This process may take so many bytes more of address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_read_weights_for_which_memory_lacks_is_no_verdict_on_the_file(
    tiny: Model, tmp_path: Path
) -> None:
    path = tmp_path / "large.safetensors"
    size = 8 << 30
    head = {"w": {"dtype": "F16", "shape": [size // 2], "data_offsets": [0, size]}}
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + size)
    with (
        room(size + 2 * ROOM),
        pytest.raises(StoppedError, match=r"large\.safetensors: memory ran out"),
    ):
        read_weights(path)
    with room(ROOM // 2), pytest.raises(OSError, match="allocate") as lack:  # for any threads
        read_weights(tiny.classifier)
    assert out_of_memory(lack.value)


def test_resolve_model_mini_is_in_the_package() -> None:
    assert resolve_model("mini").folder == Path(vnp.__file__).parent / "mini"


@pytest.mark.parametrize(
    ("heads", "width"), [(1, (32, 2)), (4, (32, 2)), (16, (32, 2)), (8, (24,))]
)
def test_heads_that_share_a_width_are_taken(heads: int, width: tuple[int, ...]) -> None:
    assert Stored(Path("esm2"), {"heads": heads}, {}).heads(*width) == heads


@pytest.mark.parametrize("heads", [0, -4, 5, 32, True, "4", None])
def test_heads_that_do_not_share_a_width_are_refused(heads: object) -> None:
    with pytest.raises(ModelError, match="heads, which do not share 32 values"):
        Stored(Path("esm2"), {"heads": heads}, {}).heads(32, 2)


@pytest.mark.parametrize(
    ("key", "value", "taken"),
    [
        *(("dim", value, False) for value in (0, -5, 1 << 31, True, 8.0, "8", None)),
        *(("window", value, False) for value in (2, 0, 1 << 31, True, 60.0, "60", None)),
        *((key, value, True) for key in ("dim", "window") for value in (3, (1 << 31) - 1)),
        ("dim", 1, True),
        *(("name", value, False) for value in (None, 5, "a\nb")),
        *(("encoders", value, False) for value in (None, 5, "", "a/b", "..")),
        ("contig_rule", {}, False),
        ("weights", None, False),
        ("weights", {}, False),
    ],
)
def test_read_model_takes_each_entry_within_its_bounds(
    key: str, value: object, taken: bool, tmp_path: Path
) -> None:
    folder = write_tiny_model(tmp_path).folder
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**about, key: value}))
    if taken:
        assert getattr(read_model(folder), key) == value
    else:
        with pytest.raises(ModelError, match=f"its '{key}' is missing or odd; import the model"):
            read_model(folder)


@pytest.mark.parametrize("sha", [None, "", "A" * 64, "a" * 63, "a" * 65, "g" * 64])
def test_read_model_with_an_odd_sha256_or_file_is_refused(sha: object, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path).folder
    about = json.loads((folder / "model.json").read_text())
    weights = about["weights"]
    some = dict(list(weights.items())[1:-1])
    for odd in ({**weights, "esm2/config.json": sha}, some, {**weights, "other": "a" * 64}):
        (folder / "model.json").write_text(json.dumps({**about, "weights": odd}))
        with pytest.raises(ModelError, match="its 'weights' is missing or odd"):
            read_model(folder)


@pytest.mark.parametrize(
    ("training", "hides"),
    [
        ({"recipe": {"augmentation": {"hide_nucleotide": 0.1, "hide_protein": 1}}}, True),
        ({"recipe": {"augmentation": {"hide_nucleotide": 0.1, "hide_protein": 0}}}, False),
        ({"recipe": {"augmentation": {"hide_nucleotide": 0.1}}}, False),
        ({"recipe": {"augmentation": {"hide_nucleotide": "1", "hide_protein": 1}}}, False),
        ({"recipe": {"augmentation": 5}}, False),
        ({"recipe": None}, False),
        (None, False),
    ],
)
def test_read_model_knows_whether_halves_were_hidden(
    training: object, hides: bool, tmp_path: Path
) -> None:
    folder = write_tiny_model(tmp_path).folder
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**about, "training": training}))
    assert read_model(folder).hides is hides


def test_encoders_are_those_of_the_model_beside_else_of_the_package(tmp_path: Path) -> None:
    own = write_tiny_model(tmp_path).folder
    about = json.loads((own / "model.json").read_text())

    def lender(name: str) -> Path | None:
        (own / "model.json").write_text(json.dumps({**about, "encoders": name}))
        return read_model(own).lender

    assert lender("mini") == Path(vnp.__file__).parent / "mini"
    assert lender("other") == tmp_path / "other"
    shutil.copytree(own, tmp_path / "mini")
    assert lender("mini") == tmp_path / "mini"


def test_verify_compares_files_of_at_most_so_many_bytes(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path)
    path = model.path("dnabert_s/tokenizer.json")
    path.write_bytes(bytes(path.stat().st_size))
    verify(model, path.stat().st_size - 1)
    for most in (path.stat().st_size, math.inf):
        with pytest.raises(ModelError, match=r"tokenizer\.json: has sha256 "):
            verify(model, most)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_verify_of_what_is_no_file_is_refused_unread(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    model = write_tiny_model(tmp_path)
    path = model.path("esm2/config.json")
    path.unlink()
    make(path)
    with pytest.raises(ModelError, match=f"{path}: is no file; import tiny again"):
        verify(model)


@pytest.mark.parametrize(
    ("number", "raised", "said"),
    [
        (errno.EACCES, ModelError, r"cannot be read \("),
        (errno.EIO, MachineError, "Input/output err"),
    ],
)
def test_verify_of_a_file_that_cannot_be_read_says_whose_fault_it_is(
    number: int, raised: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sha256(_: Path) -> str:
        raise OSError(number, os.strerror(number))

    model = write_tiny_model(tmp_path)
    monkeypatch.setattr("virnucpro_core.models.store.sha256", sha256)
    with pytest.raises(raised, match=rf"{model.folder}/.*: {said}"):
        verify(model)


def test_published_models_are_called_by_their_windows() -> None:
    assert {f"virnucpro-{window}": window for window in (300, 500)} == PUBLISHED_WINDOWS


def test_models_folder_is_the_one_asked_for_else_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_model(tmp_path / "a")
    for value, found in (("", None), (str(tmp_path / "b"), tmp_path / "b")):
        monkeypatch.setenv("VIRNUCPRO_MODELS", value)
        assert models_folder(None) == found
        assert models_folder(tmp_path / "a") == tmp_path / "a"
    monkeypatch.setenv("VIRNUCPRO_MODELS", str(tmp_path / "a"))
    assert [model.name for model in list_models()] == ["mini", "tiny"]
    assert resolve_model("tiny").folder == tmp_path / "a/tiny"
    with pytest.raises(InputError, match="'none' is not known; choose one of mini, tiny, virnuc"):
        resolve_model("none")
    with pytest.raises(ModelError, match=r"'virnucpro-500' is not in /.*/a; bring it in with "):
        resolve_model("virnucpro-500")
    monkeypatch.delenv("VIRNUCPRO_MODELS")
    with pytest.raises(ModelError, match=r"'virnucpro-500' is not in a models folder \(none is"):
        resolve_model("virnucpro-500")


def test_resolve_model_of_an_earlier_format_is_to_be_imported_again(tmp_path: Path) -> None:
    about = {"format": 1, "name": "old", "nucleotide": "dnabert_s", "weights": {}}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match=r"is of format 1; import the model again\.$"):
        resolve_model("old", tmp_path)


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
