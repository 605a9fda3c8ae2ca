"""Importing models: what is refused, and what a broken import leaves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny import write_tiny_model

from virnucpro_core.errors import InputError, ModelError
from virnucpro_core.models.store import Model, import_model, resolve_model, verify


def bring_in(model: Model, root: Path, name: str = "mine", esm2: Path | None = None) -> Model:
    return import_model(
        name,
        dnabert_s=model.nucleotide,
        esm2=esm2 or model.protein,
        classifier=model.classifier,
        models_dir=root,
        window=60,
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


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../b", "a b"])
def test_import_name_that_is_no_folder_is_refused(tiny: Model, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="names no folder"):
        bring_in(tiny, tmp_path / "models", name)
    assert not list(tmp_path.iterdir())


def test_import_parts_of_one_name_are_refused(tiny: Model, tmp_path: Path) -> None:
    esm2 = tmp_path / "downloads" / tiny.nucleotide.name
    shutil.copytree(tiny.protein, esm2)
    with pytest.raises(InputError, match=r"have one name \(dnabert_s, dnabert_s, "):
        bring_in(tiny, tmp_path / "models", esm2=esm2)


def test_import_the_current_folder_is_stored_under_its_name(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.protein)
    model = bring_in(tiny, tmp_path, esm2=Path())
    assert model.protein == tmp_path / "mine" / tiny.protein.name
    verify(model)


def test_import_that_breaks_off_leaves_no_record_of_what_it_replaced(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    bring_in(tiny, tmp_path)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        bring_in(tiny, tmp_path)
    with pytest.raises(InputError, match="'mine' is not known"):
        resolve_model("mine", tmp_path)
    monkeypatch.undo()
    verify(bring_in(tiny, tmp_path))
