"""Models by name: what model.json may say, and files that are not what it says."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny import write_tiny_model

import virnucpro_core as vnp
from virnucpro_core.errors import (
    ROOM,
    InputError,
    MachineError,
    ModelError,
    StoppedError,
    out_of_memory,
)
from virnucpro_core.models.layout import Stored, read_weights
from virnucpro_core.models.store import (
    PUBLISHED_WINDOWS,
    Model,
    list_models,
    models_folder,
    read_model,
    resolve_model,
    verify,
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
