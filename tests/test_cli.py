"""The command line: exit codes, sentences, and the stages run one after another."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import virnucpro_core as vnp
from virnucpro_core.models.store import Model
from virnucpro_core.schema import CONTIGS

OUT = {
    "contigs.tsv",
    "windows.tsv",
    "frames.parquet",
    "viral.fasta.gz",
    "regions.tsv",
    "regions.gff3",
    "regions.fasta.gz",
    "contigs.parquet",
    "prediction_results.txt",
    "prediction_results_highestscore.csv",
    "summary.json",
}


def virnucpro(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "virnucpro_core.cli", *map(str, arguments)]
    env = {name: value for name, value in os.environ.items() if name != "VIRNUCPRO_MODELS"}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, check=False)


def assert_refused(run: subprocess.CompletedProcess[str], code: int, pattern: str) -> None:
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert re.search(pattern, last), run.stderr


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"", r"contigs\.fa: the file is empty; "),
        (b"hello\n", r"contigs\.fa, line 1: not FASTA"),
        (b">p\nMKLVEEL\n", r"contigs\.fa, line 2: .* looks like protein; "),
        (b">a\nAC\n>a\nGT\n", r"contigs\.fa, line 3: contig id 'a' appears twice; "),
        (
            gzip.compress(b">a\n" + os.urandom(300).hex().encode())[:200],
            r"contigs\.fa: .*truncated",
        ),
        (None, r"contigs\.fa: no such file; "),
    ],
)
@pytest.mark.parametrize("stage", ["split", "translate", "predict"])
def test_cli_bad_fasta_exits_2_with_one_sentence(
    tmp_path: Path, stage: str, content: bytes | None, pattern: str
) -> None:
    fasta = tmp_path / "contigs.fa"
    if content is not None:
        fasta.write_bytes(content)
    options = {"split": [], "translate": ["--window", "500"], "predict": ["--model", "mini"]}
    assert_refused(virnucpro(stage, fasta, "-o", tmp_path / "out", *options[stage]), 2, pattern)


@pytest.mark.parametrize(
    ("arguments", "code", "pattern"),
    [
        (["prodict"], 2, "No such command 'prodict'"),
        (["predict", "a.fa", "-o", "out", "--modle", "mini"], 2, "No such option: --modle"),
        (["predict", "a.fa", "-o", "o", "--precison", "fp16"], 2, r"--precision, --preset\)\. S"),
        (["predict", "a.fa"], 2, "Missing option '--output'"),
        (["predict", "a.fa", "-o", "out", "--model", "maxi"], 2, "'maxi' is not known; choose one"),
        (["predict", "a.fa", "-o", "out", "--model", "virnucpro-500"], 3, "models fetch"),
        (["predict", "a.fa", "-o", "o", "--model", "mini", "--devices", "tpu"], 2, "'tpu' is not"),
        (
            ["predict", "a.fa", "-o", "o", "--model", "mini", "--min-score", "0"],
            2,
            "^virnucpro: --min-score 0: give a number above 0, at most 1",
        ),
        (["translate", "a.fa", "-o", "f.parquet"], 2, "either --window or --model"),
        (["embed", "f.parquet", "-o", "s.h5", "--model", "mini"], 2, r"f\.parquet: no such file"),
        (
            ["train", "--virus", "a.fa", "--other", "a.fa", "-o", "o", "--device", "tpu"],
            2,
            "'tpu' is not known",
        ),
        (["models", "import", "mine"], 2, "Missing option"),
    ],
)
def test_cli_bad_usage_is_one_sentence(
    tmp_path: Path, arguments: list[str], code: int, pattern: str
) -> None:
    assert_refused(virnucpro(*arguments, cwd=tmp_path), code, pattern)


@pytest.mark.parametrize("output", ["a.fa", "a.fa/out"])
@pytest.mark.parametrize("command", [["split"], ["predict", "--model", "mini"]])
def test_cli_output_that_is_in_the_way_exits_2(
    tmp_path: Path, command: list[str], output: str
) -> None:
    (tmp_path / "a.fa").write_text(">a\nACGT\n")
    run = virnucpro(*command, "a.fa", "-o", output, cwd=tmp_path)
    assert_refused(run, 2, r"^virnucpro: a\.fa: is a file where a folder has to be; name another")
    assert [path.name for path in tmp_path.iterdir()] == ["a.fa"]


def test_cli_output_that_is_a_folder_is_named_as_given(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(">a\nACGT\n")
    (tmp_path / "here").mkdir()
    run = virnucpro("translate", "a.fa", "-o", "here", "--window", 500, cwd=tmp_path)
    assert_refused(run, 2, r"^virnucpro: here: Is a directory; give another path\.$")


def test_cli_help_and_version_load_no_library_and_nothing_of_the_lab_but_its_commands() -> None:
    code = (
        "import sys\nfrom virnucpro_core.cli import run\nassert run(['{}']) == 0\n"
        "assert not sys.modules.keys() & {{'torch', 'numpy', 'pyarrow', 'h5py', 'jinja2'}}\n"
        "lab = 'virnucpro_core.lab.'\n"
        "assert all(name.startswith(lab + 'commands') for name in sys.modules if lab in name)"
    )
    for option in ("--help", "--version"):
        run = subprocess.run(
            [sys.executable, "-c", code.format(option)], capture_output=True, text=True, check=True
        )
        assert "virnucpro" in run.stdout


def test_cli_stage_by_stage_gives_what_predict_gives(
    edge: Path, tiny: Model, models_dir: Path, tmp_path: Path
) -> None:
    model = ["--model", "tiny", "--models-dir", models_dir]
    work, out = tmp_path / "work", tmp_path / "out"
    assert virnucpro("split", edge, "-o", work, "--shard-bp", 9_000).returncode == 0
    shards, frames = [], []
    for piece in sorted(work.glob("piece_*.fasta")):
        table, shard = (work / kind / piece.stem for kind in ("frames", "shards"))
        table, shard = table.with_suffix(".parquet"), shard.with_suffix(".h5")
        assert virnucpro("translate", piece, "-o", table, *model).returncode == 0
        assert virnucpro("embed", table, "-o", shard, *model).returncode == 0
        shards.append(shard)
        frames += ["--frames", table]
    assert len(shards) > 2
    merged = work / "embeddings.h5"
    assert virnucpro("merge", *shards[::-1], *frames, "-o", merged).returncode == 0
    contigs = ["--contigs", work / "contigs.parquet"]
    run = virnucpro("classify", merged, *frames, *contigs, "-o", out, *model, "--sample", "edge")
    assert run.returncode == 0, run.stderr
    of_folders = ["--frames", work / "frames"]
    assert virnucpro("merge", work / "shards", *of_folders, "-o", merged).returncode == 0
    again = ["classify", merged, *of_folders, *contigs, "-o", tmp_path / "again", *model]
    assert virnucpro(*again).returncode == 0
    scored = [(folder / "frames.parquet").read_bytes() for folder in (out, tmp_path / "again")]
    assert scored[0] == scored[1]
    assert {path.name for path in out.iterdir()} == OUT
    assert virnucpro("report", out, "-o", out / "report.html").returncode == 0

    whole = tmp_path / "whole"
    run = virnucpro("predict", edge, "-o", whole, *model)
    assert run.returncode == 0, run.stderr
    assert "44 contigs" in run.stdout
    assert OUT | {"report.html"} <= {path.name for path in whole.iterdir()}
    [ran] = json.loads((whole / "summary.json").read_text())["ran"]
    assert ran["command"] == f"virnucpro predict {edge} -o {whole} {' '.join(map(str, model))}"
    assert {"virnucpro", "python", "torch"} <= ran["versions"].keys()
    assert not (whole / ".work").exists()
    headers = [line for line in edge.read_text().splitlines() if line.startswith(">")]
    for folder in (out, whole):
        rows = [line.split("\t") for line in (folder / "contigs.tsv").read_text().splitlines()]
        assert [row[0] for row in rows[1:]] == [header[1:].split()[0] for header in headers]
    calls = [
        [line.split("\t")[8:] for line in (folder / "contigs.tsv").read_text().splitlines()]
        for folder in (out, whole)
    ]
    assert calls[0] == calls[1]
    columns = pq.read_schema(whole / "frames.parquet").names
    scores = ["score_other", "score_virus", "call", "score_nucleotide", "score_protein"]
    assert columns[-5:] == scores


def test_predict_from_python_gives_the_table_of_contigs(
    edge: Path, tiny: Model, models_dir: Path
) -> None:
    table = vnp.predict(edge, model="tiny", models_dir=models_dir)
    assert table.num_rows == 44
    assert table.column_names == CONTIGS.names
    assert set(table["call"].to_pylist()) <= {"virus", "other", "no_call"}


def test_predict_sample_is_named_like_the_file_as_the_pipeline_does(tmp_path: Path) -> None:
    fasta = tmp_path / "E.coli_run1.fasta.gz"
    fasta.write_bytes(gzip.compress(b">a\nAC\n"))
    vnp.predict(fasta, output=tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["sample"] == "E.coli_run1"


def test_predict_from_python_refuses_with_the_sentence_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "empty.fa").touch()
    with pytest.raises(vnp.InputError, match=r"empty\.fa: the file is empty"):
        vnp.predict(tmp_path / "empty.fa", model="mini")
    with pytest.raises(vnp.InputError, match="'maxi' is not known"):
        vnp.predict(tmp_path / "empty.fa", model="maxi")


@pytest.mark.parametrize(
    ("fasta", "fraction", "says"), [([], 0.5, "no FASTA"), (["a.fa"], 0.0, "above 0, at most 1")]
)
def test_predict_bad_arguments_are_refused_before_any_work(
    fasta: list[str], fraction: float, says: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(vnp.InputError, match=says):
        vnp.predict(fasta, "mini", output=out, min_score=fraction)
    assert not out.exists()


def test_models_import_then_verify_finds_a_changed_file(tiny: Model, tmp_path: Path) -> None:
    parts = ["--dnabert-s", tiny.nucleotide, "--esm2", tiny.protein]
    parts += ["--classifier", tiny.classifier, "--models-dir", tmp_path]
    run = virnucpro("models", "import", "virnucpro-300", *parts)
    assert run.returncode == 0, run.stderr
    assert virnucpro("models", "verify", "virnucpro-300", "--models-dir", tmp_path).returncode == 0
    listed = virnucpro("models", "list", "--models-dir", tmp_path).stdout
    assert "virnucpro-300" in listed
    assert "mini" in listed
    weights = tmp_path / "virnucpro-300" / "classifier.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    run = virnucpro("models", "verify", "virnucpro-300", "--models-dir", tmp_path)
    assert_refused(run, 3, r"classifier\.safetensors: has sha256")
    weights.unlink()
    run = virnucpro("embed", "f", "-o", "s", "--model", "virnucpro-300", "--models-dir", tmp_path)
    assert_refused(run, 3, r"classifier\.safetensors: is missing")


def test_models_import_in_place_keeps_the_user_s_other_files(tiny: Model, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(tiny.folder, folder)
    (folder / tiny.nucleotide.name / "README.md").write_text("mine")
    parts = ["--dnabert-s", folder / tiny.nucleotide.name, "--esm2", folder / tiny.protein.name]
    parts += ["--classifier", folder / tiny.classifier.name, "--models-dir", tmp_path]
    run = virnucpro("models", "import", "mine", *parts, "--window", 60)
    assert run.returncode == 0, run.stderr
    assert (folder / tiny.nucleotide.name / "README.md").read_text() == "mine"
    assert virnucpro("models", "verify", "mine", "--models-dir", tmp_path).returncode == 0


@pytest.mark.parametrize("command", ["predict", "split", "translate", "evaluate"])
def test_cli_a_url_is_no_file(command: str, tmp_path: Path) -> None:
    url = "https://example.org/contigs.fa.gz"
    words: dict[str, list[object]] = {
        "predict": [url, "-o", "out", "--model", "mini"],
        "split": [url, "-o", "out"],
        "translate": [url, "-o", "out", "--window", 300],
        "evaluate": ["--virus", url, "--other", url, "--model", "mini"],
    }
    run = virnucpro(command, *words[command], cwd=tmp_path)
    assert_refused(run, 2, rf"^virnucpro: {url}: is a URL, and this command reads files; ")
    assert not list(tmp_path.iterdir())
