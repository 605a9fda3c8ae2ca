"""Every option of every command, from the command line to its effect."""

from __future__ import annotations

import inspect
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import h5py
import pyarrow.parquet as pq
import pytest
import typer
from test_cli import OUT

import virnucpro_core as vnp
from virnucpro_core import __version__, cli
from virnucpro_core.cli.command import SHARED
from virnucpro_core.models import DEFAULT, store
from virnucpro_core.parquet import frame_meta

Test = TypeVar("Test", bound=Callable[..., None])
Run = Callable[..., tuple[int, str, str]]

SEEN: set[str] = set()
MORE = (
    *("test_options_calls", "test_options_measure", "test_compare", "test_estimate"),
    *("test_doctor", "test_help", "test_configuration"),
)
"""Modules whose tests see options too."""
ELSEWHERE = {
    "train --recipe": "test_train.py::test_cli_train_with_an_odd_recipe_exits_2",
    "report --earlier": "test_report.py::test_results_of_earlier_runs_are_named",
    "report --command": "test_report.py::test_a_run_of_several_samples_shows_what_a_user_ran",
    "report --run-name": "test_report.py::test_a_run_of_several_samples_shows_what_a_user_ran",
    "models fetch --classifier": "test_fetch.py::test_fetch_published_model",
    "models fetch --models-dir": "test_fetch.py::test_fetch_published_model",
    "models fetch --dnabert-s-revision": "test_fetch.py::test_fetch_from_a_hub_that_lacks_a_part",
    "models fetch --esm2-revision": "test_fetch.py::test_fetch_from_a_hub_that_lacks_a_part",
}
"""Options whose effect a test in another file sees: the file, and how the test's name begins."""


def sees(command: str, *options: str) -> Callable[[Test], Test]:
    """The test sees the effect of these options: without one of them, or ignored, it fails."""
    SEEN.update(f"{command} {option}".strip() for option in options)
    return lambda test: test


def commands(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    yield name, command
    for part, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{name} {part}".strip())


def test_every_option_of_every_command_has_its_test() -> None:
    for more in MORE:
        import_module(more)
    options = {
        f"{name} {option.opts[0]}".strip()
        for name, command in commands(typer.main.get_command(cli.app))
        for option in command.params
        if option.opts[0].startswith("--") and (not name or option not in SHARED)
    }
    assert options - SEEN - ELSEWHERE.keys() == set()
    assert (SEEN | ELSEWHERE.keys()) - options == set()
    for where in ELSEWHERE.values():
        file, test = where.split("::")
        assert f"def {test}" in (Path(__file__).parent / file).read_text()


def summary(out: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return about


@sees("", "--version", "--verbose")
def test_version_is_printed_and_verbose_says_more(run: Run) -> None:
    assert run("--version")[1] == f"virnucpro {__version__}\n"
    run("models", "list")
    assert logging.getLogger("virnucpro").level == logging.INFO
    run("--verbose", "models", "list")
    assert logging.getLogger("virnucpro").level == logging.DEBUG


def test_one_model_is_the_default_of_commands_python_and_pipeline(edge: Path, run: Run) -> None:
    found = {
        name: option.get_default(typer.Context(command))
        for name, command in commands(typer.main.get_command(cli.app))
        for option in command.params
        if "--model" in option.opts
    }
    assert found.pop("split") is found.pop("translate") is None, "these can do without"
    assert {"predict", "embed", "classify", "estimate", "evaluate"} < found.keys()
    assert set(found.values()) == {DEFAULT}
    assert inspect.signature(vnp.predict).parameters["model"].default == DEFAULT
    root = Path(__file__).parents[1]
    schema = json.loads((root / "nextflow_schema.json").read_text())
    assert schema["$defs"]["classification"]["properties"]["model"]["default"] == DEFAULT
    config = (root / "nextflow.config").read_text()
    assert re.findall(r"^ +model += '(.*)'$", config, re.MULTILINE) == [DEFAULT]
    code, said, _ = run("estimate", edge)
    assert (code, f"tokens with {DEFAULT}" in said) == (0, True)


def test_default_model_that_the_package_lacks_is_told_in_a_sentence(
    edge: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SHIPPED", tmp_path)
    code, _, err = run("predict", edge, "-o", tmp_path / "out")
    assert code == 3
    assert f"{tmp_path / DEFAULT}: holds no model, though {DEFAULT} comes with the package" in err


@pytest.mark.parametrize(
    "words",
    [
        "predict FASTA -o OUT --model mini",
        "embed FRAMES -o OUT --model mini",
        "validate FRAMES --model mini --precision bf16",
        "profile FRAMES --model mini",
        "benchmark --section dnabert_s",
        "train --virus FASTA --other FASTA -o OUT",
        "evaluate --virus FASTA --other FASTA --model mini",
    ],
)
@sees("predict", "--device")
@sees("embed", "--device")
@sees("validate", "--device")
@sees("profile", "--device")
@sees("benchmark", "--device")
@sees("train", "--device")
@sees("evaluate", "--device")
def test_device_that_is_not_there_is_refused_before_any_work(
    words: str, run: Run, three: Path, edge_frames: Path, tmp_path: Path
) -> None:
    names = {"FASTA": three, "FRAMES": edge_frames, "OUT": tmp_path / "out"}
    arguments = [names.get(word, word) for word in words.split()]
    code, _, err = run(*arguments, "--device", "cuda:99")
    assert code == 2
    assert "'cuda:99' is not there" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        "embed absent.parquet -o OUT --model mini",
        "embed FRAMES -o OUT --model maxi",
        "embed FRAMES -o OUT --model mini --precision fp8",
        "predict absent.fa -o OUT --model mini",
        "predict PROTEIN -o OUT --model mini",
        "predict https://example.org/a.fa -o OUT --model mini",
    ],
)
def test_bad_arguments_are_refused_before_a_gpu_is_waited_for(
    words: str, run: Run, edge_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leased(*_: object) -> None:
        raise AssertionError("waits for a GPU")

    monkeypatch.setattr("virnucpro_core.embedding.engine.leased", leased)
    (tmp_path / "protein.fa").write_text(">p\nMKLVEEL\n")
    names = {"FRAMES": edge_frames, "PROTEIN": tmp_path / "protein.fa", "OUT": tmp_path / "out"}
    assert run(*(names.get(word, word) for word in words.split()))[0] == 2
    assert not (tmp_path / "out").exists()


@sees("predict", "--output", "--model", "--models-dir", "--precision")
@sees("predict", "--genetic-code", "--force", "--token-budget", "--gpus")
def test_predict_options(
    ask: Callable[..., str], run: Run, model: list[object], three: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = [*model, "--precision", "bf16", "--genetic-code", "15"]
    said = ask(
        *("predict", three, "--output", out, *settings), *("--token-budget", 300, "--gpus", 3)
    )
    assert "in batches of 300 tokens" in said
    assert "3 GPU(s) asked for, but the CPU works" in said
    about = summary(out)
    assert OUT | {"report.html"} <= {path.name for path in out.iterdir()}
    assert (about["model"], about["precision"]) == ("tiny", "bf16")
    assert about["embedded_on"][0]["precision"] == "bf16"
    assert about["genetic_code"] == "15"
    assert about["contigs_read_with"] == {"15": about["contigs"]["total"]}
    other = tmp_path / "other.fa"
    other.write_text(three.read_text().replace(">c", ">d"))
    assert run("predict", other, "-o", out, *settings)[0] == 2
    assert summary(out) == about
    ask("predict", other, "-o", out, *settings, "--force")
    assert summary(out)["input"][0]["name"] == "other.fa"


@sees("split", "--output", "--shard-bp", "--model", "--device-class", "--force")
def test_split_options(ask: Callable[..., str], run: Run, tmp_path: Path) -> None:
    fasta = tmp_path / "in.fa"
    fasta.write_text("".join(f">c{n}\n{'ACGT' * 15_000}\n" for n in range(5)))

    def pieces(*options: object) -> int:
        shutil.rmtree(tmp_path / "split", ignore_errors=True)
        ask("split", fasta, "--output", tmp_path / "split", *options)
        return len(list((tmp_path / "split").glob("piece_*.fasta")))

    assert pieces() == 1
    assert pieces("--shard-bp", 60_000) == 5
    assert 1 < pieces("--model", "virnucpro-500") < 5
    assert pieces("--model", "virnucpro-500", "--device-class", "h100") == 1
    fasta.write_text(">other\nACGT\n")
    assert run("split", fasta, "-o", tmp_path / "split")[0] == 2
    ask("split", fasta, "-o", tmp_path / "split", "--force")
    table = pq.read_table(tmp_path / "split/contigs.parquet")
    assert table["contig"].to_pylist() == ["other"]


@sees("translate", "--output", "--window", "--model", "--models-dir", "--fasta-dir", "--runs")
@sees("translate", "--genetic-code")
def test_translate_options(
    ask: Callable[..., str], model: list[object], edge: Path, tmp_path: Path
) -> None:
    def window(*options: object) -> bytes:
        ask("translate", edge, "--output", tmp_path / "f.parquet", *options)
        footer: bytes = pq.read_metadata(tmp_path / "f.parquet").metadata[b"virnucpro.window"]
        return footer

    assert window("--window", 120) == b"120"
    rows = pq.read_metadata(tmp_path / "f.parquet").num_rows
    assert window("--window", 120, "--runs") == b"120"
    assert pq.read_metadata(tmp_path / "f.parquet").num_rows > rows
    assert window(*model, "--fasta-dir", tmp_path / "fasta") == b"300"
    assert {path.name for path in (tmp_path / "fasta").iterdir()} == {
        "chunked300.fa",
        "identified_nucleotide.fa",
        "identified_protein.faa",
    }
    window("--window", 300, "--genetic-code", "15", "--fasta-dir", tmp_path / "other")
    proteins = [
        (tmp_path / folder / "identified_protein.faa").read_text().count(">")
        for folder in ("fasta", "other")
    ]
    assert proteins[0] < proteins[1]
    assert frame_meta(tmp_path / "f.parquet").genetic_code == "15"


@pytest.mark.parametrize("command", ["predict", "translate"])
def test_genetic_code_that_biopython_lacks_is_refused(
    command: str, run: Run, edge: Path, tmp_path: Path
) -> None:
    code, _, err = run(
        command, edge, "-o", tmp_path / "out", "--model", "mini", "--genetic-code", 7
    )
    assert code == 2
    assert err.startswith("virnucpro: genetic code '7': Biopython has no such table; give auto or ")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@sees("embed", "--output", "--model", "--models-dir", "--token-budget", "--checkpoint-dir")
@sees("embed", "--gpus", "--precision", "--force")
def test_embed_options(
    ask: Callable[..., str],
    run: Run,
    model: list[object],
    three: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask("translate", three, "-o", tmp_path / "f.parquet", *model)
    out, blocks = tmp_path / "s.h5", tmp_path / "far" / "blocks"
    words = ["embed", tmp_path / "f.parquet", "--output", out, *model]
    options = ["--token-budget", 300, "--checkpoint-dir", blocks, "--precision", "bf16"]
    monkeypatch.setattr("virnucpro_core.models.gate.NEEDED", ("bf16",))
    code, _, err = run(*words, *options)
    assert code == 2, "as fp8 is, where there is a GPU for it"
    assert "no passed validation in bf16" in err
    assert not blocks.parent.exists()
    said = ask(*words, *options, "--force", "--gpus", 3)
    assert "in batches of 300 tokens" in said
    assert "3 GPU(s) asked for, but the CPU works" in said
    assert blocks.is_dir()
    with h5py.File(out) as shard:
        assert (shard.attrs["model"], shard.attrs["precision"]) == ("tiny", "bf16")


@sees("merge", "--output", "--frames", "--copy")
def test_merge_options(
    ask: Callable[..., str], run: Run, shard: Path, edge_frames: Path, tmp_path: Path
) -> None:
    for copy in ([], ["--copy"]):
        ask("merge", shard, "--frames", edge_frames, "--output", tmp_path / "e.h5", *copy)
        with h5py.File(tmp_path / "e.h5") as merged:
            assert merged["embedding"].is_virtual == (not copy)
    assert (
        run("merge", shard, "--frames", shard.parent / "no.parquet", "-o", tmp_path / "e")[0] == 2
    )
