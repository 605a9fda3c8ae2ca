"""Options of the commands that measure and keep models, from the command line to their effect."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from test_options import Run, sees

from virnucpro_core.lab.head import ORIGINAL
from virnucpro_core.models.store import Model


@sees("validate", "--model", "--models-dir", "--precision", "--against", "--sample", "--json")
@sees("validate", "--min-agreement", "--min-cosine")
def test_validate_options(
    ask: Callable[..., str], run: Run, model: list[object], edge_frames: Path, tmp_path: Path
) -> None:
    words = ["validate", edge_frames, *model, "--precision", "bf16", "--sample", 7]
    words += ["--json", tmp_path / "v.json"]
    ask(*words, "--against", "fp16", "--min-agreement", "0.5", "--min-cosine", "0.25")
    record = json.loads((tmp_path / "v.json").read_text())
    assert [record[key] for key in ("model", "precision", "against", "frames")] == [
        *("tiny", "bf16", "fp16", 7)
    ]
    assert record["bars"] == {"agreement": 0.5, "cosine": 0.25}
    assert run(*words, "--min-cosine", "1")[0] == 1


@sees("profile", "--model", "--models-dir", "--precision", "--json")
def test_profile_options(
    ask: Callable[..., str], model: list[object], three: Path, tmp_path: Path
) -> None:
    ask("translate", three, "-o", tmp_path / "f.parquet", *model)
    words = ["profile", tmp_path / "f.parquet", *model, "--precision", "bf16"]
    said = ask(*words, "--json", tmp_path / "p.json")
    assert "tokenise" in said
    assert json.loads((tmp_path / "p.json").read_text())["precision"] == "bf16"


@sees("benchmark", "--section", "--output", "--device")
def test_benchmark_devices(ask: Callable[..., str], run: Run, three: Path, tmp_path: Path) -> None:
    ask("translate", three, "-o", tmp_path / "f.parquet", "--window", 500)
    words = ["benchmark", tmp_path / "f.parquet", "--section", "devices"]
    said = ask(*words, "--output", tmp_path / "b", "--device", "cpu,cpu")
    record = json.loads((tmp_path / "b/benchmark.json").read_text())
    values = {line["name"]: line["value"] for line in record["lines"]}
    assert values["devices: frames"] == len(pq.read_table(tmp_path / "f.parquet")) > 0
    for names in ("cpu", "cpu,cpu"):
        parts = [values[f"{names}: {part}"] for part in ("start to first batch", "work", "tail")]
        assert min(parts) > 0
        assert sum(parts) == pytest.approx(values[f"{names}: whole command"])
    assert values["devices: values, relative difference"] < 1e-5
    assert "workers' ends apart" in said
    code, _, err = run(*words, "--device", "cpu")
    assert code == 2
    assert "section devices needs several" in err


@sees("benchmark", "--section", "--output")
def test_benchmark_options(ask: Callable[..., str], tmp_path: Path) -> None:
    ask("benchmark", "--section", "dnabert_s", "--output", tmp_path / "b", "--device", "cpu")
    record = json.loads((tmp_path / "b/benchmark.json").read_text())
    assert record["lines"]
    assert {"DNABERT-S bf16: model", "DNABERT-S: share of both encoders' time"} <= {
        line["name"] for line in record["lines"]
    }
    assert not any(line["name"].startswith("ESM-2") for line in record["lines"])


@sees("train", "--virus", "--other", "--more-virus", "--more-other", "--output")
@sees("train", "--window", "--seed", "--force", "--notes")
@sees("models card", "--models-dir")
@pytest.mark.usefixtures("quick_training")
def test_train_options(
    ask: Callable[..., str], run: Run, fastas: dict[str, Path], three: Path, tmp_path: Path
) -> None:
    more = tmp_path / "more.fa"
    more.write_text(three.read_text().replace(">c", ">m"))
    words: list[object] = ["train", "--virus", fastas["virus"], "--other", fastas["other"]]
    words += ["--more-virus", three, "--more-other", more]

    def trained(window: int, seed: int, *options: object) -> dict[str, Any]:
        out = tmp_path / "models/own"
        ask(*words, "--window", window, "--seed", seed, "--output", out, *options)
        about: dict[str, Any] = json.loads((out / "model.json").read_text())
        return about

    own = trained(300, 5)
    assert (own["name"], own["window"], own["training"]["seed"]) == ("own", 300, 5)
    assert own["training"]["files"] == {
        "virus": ["virus.fa"],
        "other": ["other.fa"],
        "more_virus": ["three.fa"],
        "more_other": ["more.fa"],
    }
    code, _, err = run(*words, "--window", 300, "--output", tmp_path / "models/own")
    assert code == 2
    assert "holds a model already" in err
    (tmp_path / "n.md").write_text("Of three contigs.\n")
    again = trained(299, 6, "--force", "--notes", tmp_path / "n.md")
    card = ask("models", "card", "own", "--models-dir", tmp_path / "models")
    assert "# own\n\nOf three contigs.\n" in card
    assert "| seed | 6 |" in card
    code, _, err = run(*words, "--output", tmp_path / "none", "--notes", tmp_path / "none.md")
    assert (code, "does not exist" in err) == (2, True)
    assert again["window"] == 299
    assert again["weights"] != own["weights"]


@sees("train", "--encoders", "--models-dir", "--precision", "--recipe")
@pytest.mark.usefixtures("quick_training")
def test_train_on_encoders_options(
    run: Run, fastas: dict[str, Path], tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virnucpro_core.lab.head.ORIGINAL", replace(ORIGINAL, epochs=2))
    root = tmp_path / "models"
    shutil.copytree(tiny.folder, root / "tiny")
    files = ["--virus", fastas["virus"], "--other", fastas["other"]]
    words: list[object] = ["train", *files, "--encoders", "tiny", "--models-dir", root]
    words += ["--device", "cpu"]
    code, said, _ = run(*words, "-o", "own", "--recipe", "original", "--precision", "bf16")
    assert code == 0
    about = json.loads((root / "own/model.json").read_text())
    assert (about["encoders"], about["window"]) == ("tiny", 300)
    training = about["training"]
    assert training["recipe"]["optimizer"] == "sgd"
    assert "test" not in training
    assert json.loads(said) == training["validation"]
    assert {one["precision"] for one in training["embeddings"]} == {"bf16"}
    assert run("models", "verify", "own", "--models-dir", root)[0] == 0
    (tmp_path / "mine.toml").write_text("epochs = 1\nhidden = 4\noptimizer = 'adamw'\n")
    assert run(*words, "-o", "two", "--recipe", tmp_path / "mine.toml")[0] == 0
    recipe = json.loads((root / "two/model.json").read_text())["training"]["recipe"]
    assert (recipe["epochs"], recipe["hidden"]) == (1, 4)
    refusals = {
        "holds a model already": (*words, "-o", "own"),
        "tiny takes 300; leave it out": (*words, "-o", "other", "--window", "500"),
        "name them with --encoders": ("train", *files, "-o", "x", "--precision", "bf16"),
    }
    for sentence, refused in refusals.items():
        code, _, err = run(*refused)
        assert code == 2
        assert sentence in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch = 3", "has an unknown entry 'epoch'"),
        ("epochs = 0", "epochs is 0; give a number"),
        ("learning_rate = nan", "learning_rate is nan; give a number"),
        ("weighed = 1", "weighed is 1; give true or false"),
        ("optimizer = 'adam'", "optimizer is 'adam'; give adamw or sgd"),
        ("epochs", "is no recipe that can be read"),
    ],
)
def test_a_recipe_on_encoders_that_is_of_no_use_exits_2(
    text: str, said: str, run: Run, fastas: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text(text)
    words = ["train", "--virus", fastas["virus"], "--other", fastas["other"], "-o", tmp_path / "x"]
    code, _, err = run(*words, "--encoders", "mini", "--recipe", tmp_path / "r.toml")
    assert code == 2
    assert said in err


@sees("evaluate", "--virus", "--other", "--model", "--models-dir", "--test-part")
@sees("evaluate", "--table", "--bins", "--output")
def test_evaluate_options(
    ask: Callable[..., str], model: list[object], three: Path, tmp_path: Path
) -> None:
    bases = three.read_text().splitlines()[1]
    paths = [tmp_path / "virus.fa", tmp_path / "other.fa"]
    for path, count in zip(paths, (12, 15), strict=True):
        path.write_text("".join(f">{path.stem}{n}\n{bases}\n" for n in range(count)))
    (tmp_path / "t.csv").write_text("contig,score\nvirus3,1\n")
    words = ["evaluate", "--virus", paths[0], "--other", paths[1], *model]

    def rows(*more: object) -> list[dict[str, Any]]:
        ask(*words, "--output", tmp_path / "out", *more)
        about = json.loads((tmp_path / "out/evaluation.json").read_text())
        assert about["model"] == "tiny"
        found: list[dict[str, Any]] = about["rows"]
        return found

    whole = rows("--table", f"mine={tmp_path / 't.csv'}", "--bins", "299,301")
    assert [(row["number"], row["viral"]) for row in whole if row["subset"] == "all"] == [
        *((27, 12),) * 3
    ]
    assert {row["tool"]: row["scored"] for row in whole if row["subset"] == "all"} == {
        **{"tiny": 27, "mine": 1}
    }
    assert {row["subset"] for row in whole} >= {"length 299-300"}
    assert rows("--test-part")[0]["number"] > 27, "contigs are cut from the groups held out"


@sees("models import", "--dnabert-s", "--esm2", "--classifier", "--models-dir", "--window")
@sees("models list", "--models-dir")
@sees("models verify", "--models-dir")
def test_models_options(ask: Callable[..., str], run: Run, tiny: Model, tmp_path: Path) -> None:
    store = ["--models-dir", tmp_path]
    parts = {"--dnabert-s": tiny.nucleotide, "--esm2": tiny.protein}
    words: list[object] = [word for part in parts.items() for word in part]
    words += ["--classifier", tiny.classifier, "--window", 77]
    ask("models", "import", "own", *words, *store)
    about = json.loads((tmp_path / "own/model.json").read_text())
    assert about["window"] == 77
    assert about["weights"] == tiny.weights
    assert "own" in ask("models", "list", *store)
    assert "virnucpro-500" in ask("models", "list", *store), "it can be fetched"
    ask("models", "verify", "own", *store)
    (tmp_path / "own/esm2/config.json").write_text("{}")
    assert run("models", "verify", "own", *store)[0] == 3
