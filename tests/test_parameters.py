"""What the pipeline is told: parameters, sheets and files of either, read or refused."""

from __future__ import annotations

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_nextflow import DEMO, NEXTFLOW, ROOT, nextflow, pipeline

pytestmark = pytest.mark.skipif(NEXTFLOW is None, reason="no Nextflow: run make setup")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--input", "none.fa"], "--input none.fa: no such file"),
        (["--shard-bp", "5"], "Unknown parameter --shardBp: did you mean --shard_bp?"),
        (["--outdr", "x"], "Unknown parameter --outdr: did you mean --outdir?"),
        (["--shard_bp", "many"], "--shard_bp many: give an integer."),
        (["--min_viral_fraction", "2"], "--min_viral_fraction 2: give 1 or less."),
        (["--min_viral_fraction", "0"], "--min_viral_fraction 0: give more than 0."),
        (["--models_dir", "gone"], "--models_dir gone: no such folder"),
        (["--models_dir", ".", "--model", "other"], "--model other: is not in .; bring it in with"),
        (["--publish_dir_mode", "move"], "--publish_dir_mode move: give one of copy,"),
        (["--checkpoint_dir", "s3://b/c"], "s3://b/c: this does not fit. Where embed tasks keep"),
        (["-params-file", "typo.yml"], "Unknown parameter --outdr: did you mean --outdir?"),
        (["--device", "tpu"], "--device tpu: this does not fit. What an embed task may use"),
        (["--precision", "int8"], "--precision int8: give one of fp32, bf16, fp16, fp8."),
    ],
)
def test_bad_parameter_is_refused_before_anything_runs(
    words: list[str], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "typo.yml").write_text("outdr: x\n")
    run = pipeline(tmp_path, *words)
    assert run.returncode != 0
    assert sentence in run.stdout
    assert "Submitted process" not in run.stdout


def test_parameters_of_an_institutions_configuration_are_a_warning(tmp_path: Path) -> None:
    (tmp_path / "site.config").write_text(
        "params { config_profile_contact = 'me'\n max_memory = 64.GB }\n"
    )
    words = ["-c", "site.config", "-stub", "--outdir", "there", "--device=cpu"]
    run = pipeline(tmp_path, *words)
    assert run.returncode == 0, run.stdout
    assert "mean nothing here: config_profile_contact, max_memory." in run.stdout


@pytest.mark.parametrize(
    ("sheet", "sentence"),
    [
        ("", "line 1: the columns must be sample,fasta"),
        ("sample,fasta\n", "line 2: no samples"),
        ("sample,fasta\na,here.fa\nb\n", "line 3: expected two cells, sample and fasta; got 'b'."),
        ("sample,fasta\na,gone.fa\n", "line 2: no such file"),
        ("\ufeffsample,fasta\r\na,*.fa\r\n", "line 2: no such file"),
        ("sample,fasta\n../a,here.fa\n", "line 2: '../a' can't name a folder"),
        ("sample,fasta\nreport,here.fa\n", "line 2: 'report' can't name a folder"),
    ],
)
def test_bad_sheet_is_refused_with_its_line(sheet: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "here.fa").write_text(">c\nACGT\n")
    (tmp_path / "sheet.csv").write_text(sheet)
    run = pipeline(tmp_path, "--input", "sheet.csv")
    assert run.returncode != 0
    assert f"sheet.csv {sentence}" in run.stdout


def test_sheet_of_a_spreadsheet_and_odd_file_names_is_read(tmp_path: Path) -> None:
    """A byte order mark, Windows line ends, and what would be a glob elsewhere."""
    (tmp_path / "run [1] of *.fa").write_text(">c\nACGT\n")
    (tmp_path / "sheet.csv").write_bytes("\ufeffsample,fasta\r\na,run [1] of *.fa\r\n".encode())
    run = pipeline(tmp_path, "-stub", "--input", "sheet.csv")
    assert run.returncode == 0, run.stdout
    assert (tmp_path / "results" / "a" / "contigs.tsv").exists()


def test_paths_of_a_remote_sheet_are_relative_to_it(tmp_path: Path) -> None:
    """A stand-in for a bucket: there too, the text of a path says only half of where it lies."""
    (tmp_path / "s.csv").write_text("sample,fasta\na,fasta/a.fa\n")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        run = pipeline(tmp_path, "-stub", "--input", f"{address}/s.csv")
        server.shutdown()
    assert f"s.csv line 2: no such file {address}/fasta/a.fa" in run.stdout


def test_schema_and_configuration_agree_on_parameters_and_defaults() -> None:
    flat = nextflow(ROOT, "config", "-flat").stdout.splitlines()
    configured = dict(
        line.removeprefix("params.").split(" = ", 1) for line in flat if line.startswith("params.")
    )
    groups = json.loads((ROOT / "nextflow_schema.json").read_text())["$defs"].values()
    defaults = {
        name: json.dumps(rule.get("default", False if rule["type"] == "boolean" else None)).replace(
            '"', "'"
        )
        for group in groups
        for name, rule in group["properties"].items()
    }
    assert configured == defaults


def test_every_parameter_has_what_a_launch_form_shows() -> None:
    schema = json.loads((ROOT / "nextflow_schema.json").read_text())
    assert schema["allOf"] == [{"$ref": f"#/$defs/{name}"} for name in schema["$defs"]]
    for group in schema["$defs"].values():
        assert {"title", "description", "fa_icon", "properties"} <= group.keys()
        assert all(
            {"type", "description", "fa_icon"} <= r.keys() for r in group["properties"].values()
        )
    sheet = ROOT / schema["$defs"]["input_output_options"]["properties"]["input"]["schema"]
    header = (DEMO / "samplesheet.csv").read_text().splitlines()[0]
    assert list(json.loads(sheet.read_text())["items"]["properties"]) == header.split(",")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("parameters.yml", "outdir: there\nshard_bp: 20000\nmin_viral_fraction: 0.25\n"),
        ("parameters.json", '{"outdir": "there", "shard_bp": 20000, "min_viral_fraction": 0.25}'),
    ],
)
def test_parameters_out_of_a_file(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    run = pipeline(tmp_path, "-stub", "-params-file", name)
    assert run.returncode == 0, run.stdout
    assert (tmp_path / "there" / "phages" / "contigs.tsv").exists()
    assert "Calls:  there/*/contigs.tsv" in run.stdout


def test_help_names_every_parameter(tmp_path: Path) -> None:
    run = pipeline(tmp_path, "--help")
    assert run.returncode == 0
    assert "--min_viral_fraction" in run.stdout
