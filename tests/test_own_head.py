"""Models of a classifier of one's own and encoders that they refer to: made, used, refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny import ENDS, WINDOW, fair_esm, save_dnabert_s

import virnucpro_core as vnp
from virnucpro_core.errors import InputError, ModelError
from virnucpro_core.lab.head import HeadRecipe
from virnucpro_core.lab.train_head import train_head
from virnucpro_core.models.store import FILES, Model, resolve_model, verify
from virnucpro_core.published.imports import import_model

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = HeadRecipe(hidden=16, batch=32, epochs=8)


@pytest.fixture(scope="module")
def own(fastas: dict[str, Path], pair: Model) -> Model:
    """`own`, trained on FASTA."""
    train_head(
        [fastas["virus"]], [fastas["other"]], pair.folder.parent / "own", pair,
        recipe=QUICK, devices="cpu",
    )  # fmt: skip
    return resolve_model("own", pair.folder.parent)


def test_a_head_refers_to_its_encoders_by_hash_and_copies_none(own: Model, pair: Model) -> None:
    assert {str(path.relative_to(own.folder)) for path in own.folder.rglob("*")} == {
        *("classifier.safetensors", "model.json")
    }
    about = json.loads((own.folder / "model.json").read_text())
    assert about["encoders"] == "pair"
    assert about["weights"].keys() == set(FILES)
    assert own.encoder_weights == pair.weights
    verify(own)
    assert about["training"]["test"]["auc"] > 0.9
    assert about["training"]["recipe"] == json.loads(json.dumps(asdict(QUICK)))


def test_shards_train_the_same_head_as_the_fasta_that_they_are_of(
    own: Model, pair: Model, shards: dict[str, Path]
) -> None:
    out = pair.folder.parent / "from_shards"
    train_head([shards["virus"]], [shards["other"]], out, pair, recipe=QUICK, devices="cpu")
    assert resolve_model(out.name, out.parent).weights == own.weights


def test_predict_with_a_head_gives_the_softmax_of_it_over_the_encoders(
    own: Model, pair: Model, fastas: dict[str, Path], tmp_path: Path
) -> None:
    table = vnp.predict(
        fastas["virus"], "own", models_dir=own.folder.parent, output=tmp_path, devices="cpu"
    )
    assert table["call"].to_pylist().count("virus") > 30
    frames = pq.read_table(tmp_path / "frames.parquet").slice(0, 20)
    halves = [
        encoder.embed(frames[column].to_pylist())
        for encoder, column in (
            (vnp.load_dnabert_s(pair.nucleotide), "nucleotide"),
            (vnp.load_esm2(pair.protein), "protein"),
        )
    ]
    with torch.inference_mode():
        logits = vnp.load_classifier(own.classifier)(torch.from_numpy(np.hstack(halves)))
    np.testing.assert_allclose(
        frames["score_virus"].to_numpy(), logits.softmax(1)[:, 1].numpy(), atol=1e-4
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["model"], summary["weights"]) == ("own", own.weights)


def test_embeddings_of_the_encoders_serve_every_head_on_them(
    own: Model, shards: dict[str, Path], fastas: dict[str, Path], ask: Any, tmp_path: Path
) -> None:
    ask("split", fastas["virus"], "-o", tmp_path / "split")
    table = shards["virus"].with_suffix(".parquet")
    words = ["--frames", table, "--contigs", tmp_path / "split/contigs.parquet"]
    store = ["--model", "own", "--models-dir", own.folder.parent]
    ask("classify", shards["virus"], *words, *store, "-o", tmp_path / "out")
    assert json.loads((tmp_path / "out/summary.json").read_text())["model"] == "own"
    said = ask("embed", table, "-o", shards["virus"], *store, "--device", "cpu")
    assert "is complete already" in said


def test_heads_on_heads_name_the_encoders_first_model(own: Model, shards: dict[str, Path]) -> None:
    out = own.folder.parent / "third"
    train_head([shards["virus"]], [shards["other"]], out, own, recipe=QUICK, devices="cpu")
    assert resolve_model("third", out.parent).lender == own.lender == own.folder.parent / "pair"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("gone", "uses the encoders of the model 'pair', which is neither in"),
        ("another", r"esm2/model\.safetensors: has sha256 .*, and own was trained on"),
        ("file", r"esm2/model\.safetensors: is missing; import pair again"),
        ("flipped", r"dnabert_s/config\.json: has sha256 .*; import pair again"),
        ("path", r"its 'encoders' is missing or odd"),
    ],
)
def test_a_head_whose_encoders_are_gone_or_others_is_refused(
    harm: str, said: str, own: Model, store: Path, run: Any, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    for name in ("own", "pair"):
        shutil.copytree(store / name, root / name)
    lent = root / "pair"
    match harm:
        case "gone":
            shutil.rmtree(lent)
        case "another":
            esm2 = fair_esm(tmp_path / "other.pt", 1, 32, 4, torch.float32)
            import_model(
                "pair", dnabert_s=store / "pair/dnabert_s", esm2=esm2, models_dir=root, window=9
            )
        case "file":
            (lent / "esm2/model.safetensors").unlink()
        case "flipped":
            (lent / "dnabert_s/config.json").write_text("{}")
        case "path":
            about = json.loads((root / "own/model.json").read_text())
            (root / "own/model.json").write_text(json.dumps({**about, "encoders": "../pair"}))
    with pytest.raises(ModelError, match=said):
        resolve_model("own", root)
    code, _, err = run("models", "verify", "own", "--models-dir", root)
    assert code == 3
    assert len(err.splitlines()) == 1


def test_encoders_alone_embed_but_are_no_model_to_predict_with(
    pair: Model, fastas: dict[str, Path], run: Any, tmp_path: Path
) -> None:
    words = ["--model", "pair", "--models-dir", pair.folder.parent, "--device", "cpu"]
    code, _, err = run("predict", fastas["virus"], "-o", tmp_path / "out", *words)
    assert code == 3
    assert "has encoders alone; make a model of them with `virnucpro train --encoders pair`" in err
    assert not (tmp_path / "out").exists()
    assert "alone" in run("models", "list", *words[2:4])[1]


@pytest.mark.parametrize("dim", [320, 480, 640])
def test_other_sizes_of_esm2_are_imported_and_trained_on(
    dim: int, fastas: dict[str, Path], tmp_path: Path
) -> None:
    """A layer of esm2_t6_8M, t12_35M and t30_150M."""
    save_dnabert_s(tmp_path / "D")
    esm2 = fair_esm(tmp_path / "esm2.pt", 1, dim, 20, torch.float32)
    root = tmp_path / "models"
    model = import_model(
        "small", dnabert_s=tmp_path / "D", esm2=esm2, models_dir=root, window=WINDOW
    )
    assert model.dim == 24 + dim
    files = {}
    for kind in ENDS:
        files[kind] = tmp_path / f"{kind}.fa"
        lines = fastas[kind].read_text().splitlines()[:50]
        files[kind].write_text("".join(f"{line[:150]}\n" for line in lines))
    record = train_head(
        [files["virus"]], [files["other"]], root / "own", model,
        recipe=replace(QUICK, epochs=2), devices="cpu",
    )  # fmt: skip
    assert record["test"]["frames"] > 0
    files["virus"].write_text("\n".join(lines[:4]) + "\n")
    assert vnp.predict(files["virus"], "own", models_dir=root, devices="cpu").num_rows == 2


def test_a_stopped_training_does_not_embed_again(
    fastas: dict[str, Path], pair: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = pair.folder.parent / "stopped"
    files = [fastas["virus"]], [fastas["other"]]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("virnucpro_core.lab.train_head.fit_head", stop)
        with pytest.raises(KeyboardInterrupt):
            train_head(*files, out, pair, recipe=QUICK, devices="cpu")
    assert not (out / "model.json").exists()
    monkeypatch.setattr("virnucpro_core.embedding.engine.run_ranks", stop)
    train_head(*files, out, pair, recipe=QUICK, devices="cpu")
    assert not (out / ".work").exists()


def test_input_that_cannot_train_is_refused_before_anything_is_embedded(
    fastas: dict[str, Path], shards: dict[str, Path], pair: Model, tiny: Model,
    edge_frames: Path, shard: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr("virnucpro_core.lab.train_head.embed", None)
    out = pair.folder.parent / "refused"
    few = tmp_path / "few.fa"
    few.write_text(f">one\n{'GCA' * 200}\n")
    cases = {
        "has no viral frames": ([few], [fastas["other"]]),
        "is among virus and other": ([fastas["virus"]], [shards["virus"]]),
        "made with the encoders of 'tiny'": ([shard], [shards["other"]]),
    }
    for said, files in cases.items():
        with pytest.raises(InputError, match=said):
            train_head(*files, out, pair, recipe=QUICK, devices="cpu")
        assert not out.exists()
    twice = [shards["virus"], shards["virus"]]
    with pytest.raises(InputError, match=r"embeds the same frames as .*; give each shard once"):
        train_head(twice, [shards["other"]], out, pair, recipe=QUICK, devices="cpu")


def test_a_place_from_which_the_encoders_are_not_found_is_refused(
    fastas: dict[str, Path], pair: Model, tmp_path: Path
) -> None:
    files = [fastas["virus"]], [fastas["other"]]
    with pytest.raises(InputError, match=r"has to lie beside them; give -o .*/own2"):
        train_head(*files, tmp_path / "own2", pair)
    with pytest.raises(InputError, match="holds the encoders themselves"):
        train_head(*files, pair.folder, pair)
    odd = replace(pair, folder=tmp_path / "an odd name")
    with pytest.raises(InputError, match="cannot be referred to"):
        train_head(*files, tmp_path / "own2", odd)
