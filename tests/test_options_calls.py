"""Options of what calls contigs and shows them, from the command line to their effect."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_options import Run, sees, summary


@sees("classify", "--output", "--frames", "--contigs", "--model", "--models-dir", "--sample")
@sees("classify", "--force")
@sees("report", "--output")
def test_classify_and_report_options(
    ask: Callable[..., str],
    run: Run,
    model: list[object],
    shard: Path,
    edge: Path,
    edge_frames: Path,
    tmp_path: Path,
) -> None:
    ask("split", edge, "-o", tmp_path)
    out = tmp_path / "out"
    words: list[object] = ["classify", shard, "--frames", edge_frames]
    words += ["--contigs", tmp_path / "contigs.parquet", "--output", out, *model]
    ask(*words, "--sample", "some", "--min-score", "0.01")
    about = summary(out)
    assert (about["sample"], about["model"]) == ("some", "tiny")
    ask(*words, "--sample", "some", "--min-score", "1")
    assert summary(out)["criteria"]["min_score"] == 1, "the same frames again need no --force"
    (out / "summary.json").write_text(json.dumps({**about, "input": [{"sha256": "another's"}]}))
    assert run(*words)[0] == 2
    ask(*words, "--force")
    ask("report", out, "--output", tmp_path / "r.html")
    assert "<html" in (tmp_path / "r.html").read_text()


ASKED: dict[str, object] = {
    "--min-score": 0.03,
    "--min-length": 31,
    "--min-evidence": 45,
}
CRITERIA = {"preset": None, "max_fdr": None, "prevalence": None}


@sees("predict", "--preset", *ASKED)
@sees("classify", "--preset", *ASKED)
@sees("call", "--preset", *ASKED)
def test_criteria_of_calls_are_recorded_and_followed(
    ask: Callable[..., str], run: Run, model: list[object], three: Path, tmp_path: Path
) -> None:
    words = [word for pair in ASKED.items() for word in pair]
    expected = {**CRITERIA, **{name[2:].replace("-", "_"): v for name, v in ASKED.items()}}
    out = tmp_path / "out"
    ask("predict", three, "-o", out, *model, *words)
    assert summary(out)["criteria"] == expected
    ask("split", three, "-o", tmp_path)
    ask("translate", three, "-o", tmp_path / "f.parquet", "--window", 300)
    ask("embed", tmp_path / "f.parquet", "-o", tmp_path / "s.h5", *model)
    where = ["--frames", tmp_path / "f.parquet", "--contigs", tmp_path / "contigs.parquet"]
    ask("classify", tmp_path / "s.h5", *where, "-o", tmp_path / "own", *model, *words)
    assert summary(tmp_path / "own")["criteria"] == expected
    tables = [(folder / "contigs.tsv").read_bytes() for folder in (out, tmp_path / "own")]
    assert tables[0] == tables[1]
    for command, folder in (
        (["predict", three, "-o", out, *model], out),
        (["classify", tmp_path / "s.h5", *where, "-o", tmp_path / "own", *model], tmp_path / "own"),
        (["call", out], out),
    ):
        ask(*command, "--preset", "sensitive")
        about = summary(folder)["criteria"]
        assert (about["preset"], about["min_score"]) == ("sensitive", pytest.approx(1 / 3))
    ask("call", out, *words)
    assert (out / "contigs.tsv").read_bytes() == tables[0]
    assert run("call", out, "--preset", "sensitive", "--min-score", "0.5")[0] == 2
    assert (out / "contigs.tsv").read_bytes() == tables[0]


@sees("predict", "--max-fdr", "--prevalence")
@sees("classify", "--max-fdr", "--prevalence")
@sees("call", "--max-fdr", "--prevalence")
def test_error_rates_of_a_model_without_a_calibration_are_refused(
    ask: Callable[..., str], run: Run, model: list[object], three: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ask("predict", three, "-o", out, *model)
    where = ["s.h5", "--frames", "f", "--contigs", "c", "-o", tmp_path / "o"]
    for command in (
        ["predict", three, "-o", out, *model],
        ["classify", *where, *model],
        ["call", out],
    ):
        for words in (["--max-fdr", "0.1"], ["--prevalence", "0.2"]):
            code, _, said = run(*command, *words)
            assert code == 2
            assert f"{words[0]} {words[1]}: the model tiny has no calibration" in said
        assert run(*command, "--prevalence", "some")[0] == 2
