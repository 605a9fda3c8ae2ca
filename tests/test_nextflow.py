"""Real Nextflow runs. One run of the demo feeds most tests; the others stop early or are stubs."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import virnucpro_core as vnp

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "assets" / "demo"
MADE_BY_SETUP = ROOT / "nextflow"
NEXTFLOW = str(MADE_BY_SETUP) if MADE_BY_SETUP.exists() else shutil.which("nextflow")

pytestmark = pytest.mark.skipif(NEXTFLOW is None, reason="no Nextflow: run make setup")

Run = Callable[..., subprocess.CompletedProcess[str]]


def nextflow(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Nextflow in a folder; its stdout and stderr come as one text."""
    return subprocess.run(
        [str(NEXTFLOW), *words],
        cwd=folder,
        env={**os.environ, "NXF_ANSI_LOG": "false", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )


def pipeline(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return nextflow(folder, "run", str(ROOT / "main.nf"), "-profile", "test", *words, **env)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def tasks(results: Path, status: str) -> Counter[str]:
    """Tasks of a status in the run's trace, counted by stage."""
    trace = rows(results / "pipeline_info" / "trace.txt")
    names = (row["name"] for row in trace if row["status"] == status)
    return Counter(name.split(" ")[0].rpartition("_")[2] for name in names)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the demo ran, with `results` in it. Not in the project's folder."""
    folder = tmp_path_factory.mktemp("demo")
    run = pipeline(folder, "--outdir", "results")
    assert run.returncode == 0, run.stdout
    (folder / "said.txt").write_text(run.stdout)
    return folder


@pytest.fixture(scope="module")
def results(launched: Path) -> Path:
    return launched / "results"


def test_every_contig_is_called_once(results: Path) -> None:
    for sample in ("phages", "others"):
        fasta = (DEMO / f"{sample}.fasta").read_text().splitlines()
        contigs = [line[1:].split()[0] for line in fasta if line.startswith(">")]
        assert [row["contig"] for row in rows(results / sample / "contigs.tsv")] == contigs


def test_phage_lambda_is_a_virus(results: Path) -> None:
    calls = {row["contig"]: row["call"] for row in rows(results / "phages" / "contigs.tsv")}
    assert calls["lambda"] == "virus"


def test_pieces_and_samples_are_tasks_of_their_own(results: Path) -> None:
    done = tasks(results, "COMPLETED")
    assert done["TRANSLATE"] == done["EMBED"] > done["SPLIT"] == 2
    assert done["MERGE"] == done["CLASSIFY"] == 2
    assert done["REPORT"] == 1


def test_calls_equal_those_of_predict(results: Path) -> None:
    alone = vnp.predict(DEMO / "phages.fasta", model="mini").to_pylist()
    through_pieces = rows(results / "phages" / "contigs.tsv")
    for one, other in zip(alone, through_pieces, strict=True):
        assert (one["contig"], one["call"], str(one["viral_windows"])) == (
            other["contig"],
            other["call"],
            other["viral_windows"],
        )


def test_results_lie_where_the_documentation_says(results: Path) -> None:
    published = {str(path.relative_to(results)) for path in results.rglob("*") if path.is_file()}
    of_a_sample = {
        "contigs.tsv",
        "windows.tsv",
        "frames.parquet",
        "viral.fasta.gz",
        "prediction_results.txt",
        "prediction_results_highestscore.csv",
        "summary.json",
    }
    assert published == {
        *(f"{sample}/{name}" for sample in ("phages", "others") for name in of_a_sample),
        "report/report.html",
        "report/virnucpro_mqc.json",
        "report/virnucpro_calls_mqc.json",
        "pipeline_info/trace.txt",
        "pipeline_info/report.html",
        "pipeline_info/timeline.html",
        "pipeline_info/dag.html",
        "pipeline_info/software_versions.yml",
    }


def test_report_names_both_samples(results: Path) -> None:
    page = (results / "report" / "report.html").read_text()
    assert "phages" in page
    assert "others" in page


def test_report_links_lead_to_the_published_tables(results: Path) -> None:
    page = results / "report" / "report.html"
    links = set(re.findall(r'href="([^"]*contigs\.tsv)"', page.read_text()))
    assert len(links) == 2
    assert all((page.parent / link).exists() for link in links)


def test_last_words_tell_what_was_found_and_where(launched: Path) -> None:
    said = (launched / "said.txt").read_text()
    assert re.search(r"phages: \d+ of 10 contigs are viral, \d+ without a call", said)
    assert "Report: results/report/report.html" in said
    assert re.search(r"Tasks:  \d+ run, 0 cached, 0 tried again; ", said)


def test_every_report_that_tower_names_is_there(results: Path) -> None:
    named = re.findall(r'^  "(.*)":$', (ROOT / "tower.yml").read_text(), re.MULTILINE)
    assert named
    assert all(any(results.glob(pattern)) for pattern in named)


def test_software_versions_are_told(results: Path) -> None:
    versions = (results / "pipeline_info" / "software_versions.yml").read_text()
    assert f"VIRNUCPRO_EMBED:\n    virnucpro: {vnp.__version__}\n" in versions
    assert "Nextflow: " in versions


def test_resume_repeats_only_what_the_change_touches(launched: Path) -> None:
    """Where checkpoints are kept touches nothing."""
    words = ["--min_viral_fraction", "0.9", "--checkpoint_dir", "kept"]
    run = pipeline(launched, "--outdir", "again", *words, "-resume")
    assert run.returncode == 0, run.stdout
    first = tasks(launched / "results", "COMPLETED")
    cached, repeated = (tasks(launched / "again", status) for status in ("CACHED", "COMPLETED"))
    assert repeated == {"CLASSIFY": 2, "REPORT": 1}
    assert cached == first - repeated


def test_resume_after_a_model_was_imported_repeats_what_it_computed(tmp_path: Path) -> None:
    """Stub runs: the second beside a new model, the third with a model imported again."""
    models = tmp_path / "models"
    shutil.copytree(Path(vnp.__file__).parent / "mini", models / "own")

    def run() -> Counter[str]:
        words = ["--model", "own", "--models_dir", "models", "-stub", "-resume"]
        done = pipeline(tmp_path, *words)
        assert done.returncode == 0, done.stdout
        return tasks(tmp_path / "results", "COMPLETED")

    assert run()["EMBED"] == 2
    (models / "another").mkdir()
    assert not run()
    (models / "own" / "imported").touch()
    assert run() == {"TRANSLATE": 2, "EMBED": 2, "MERGE": 2, "CLASSIFY": 2, "REPORT": 1}


def test_stopped_task_is_tried_again_under_the_strict_parser(tmp_path: Path) -> None:
    """Stub run: what it checks is the workflow's wiring and the retry of exit code 75."""
    stop_once = f"test -e {tmp_path}/stopped || {{ touch {tmp_path}/stopped; exit 75; }}"
    (tmp_path / "stop.config").write_text(
        f"process {{ withName: VIRNUCPRO_EMBED {{ beforeScript = '{stop_once}' }} }}\n"
    )
    # In 25.04 the strict parser loses -profile beside -c, and --outdir inside the configuration.
    words = ["-stub", "-c", "stop.config", "--input", f"{DEMO}/samplesheet.csv", "--model", "mini"]
    run = nextflow(tmp_path, "run", f"{ROOT}/main.nf", *words, NXF_SYNTAX_PARSER="v2")
    assert run.returncode == 0, run.stdout
    assert tasks(tmp_path / "results", "FAILED") == {"EMBED": 1}
    assert tasks(tmp_path / "results", "COMPLETED")["EMBED"] == 2
    assert (tmp_path / "results" / "phages" / "contigs.tsv").exists()


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


@pytest.mark.parametrize(
    ("text", "words", "sentence"),
    [
        (">p\nMKLVWERTYHIPLKDFE\n", [], "protein.fa"),
        (">c\nACGTACGT\n", ["--model", "nonesuch"], "model 'nonesuch' is not known"),
        (">c\nACGTACGT\n", ["--model", "virnucpro-500"], "model 'virnucpro-500' is not in"),
    ],
)
def test_refusal_of_a_task_reaches_the_user_as_the_last_word(
    text: str, words: list[str], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "protein.fa").write_text(text)
    run = pipeline(tmp_path, "--input", "protein.fa", *words)
    assert run.returncode != 0
    *_, last = (line for line in run.stdout.splitlines() if line.startswith("ERROR ~ "))
    assert sentence in last
    assert "Traceback" not in run.stdout
    assert "retried" not in run.stdout


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


def test_another_pipeline_takes_the_subworkflow_in(tmp_path: Path) -> None:
    path = f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"
    run = nextflow(tmp_path, "run", f"{ROOT}/tests/including/main.nf", PATH=path)
    assert run.returncode == 0, run.stdout
    assert "longest virus of gut_1 (gut): lambda_1000bp" in run.stdout
    assert f"VIRNUCPRO_EMBED: virnucpro {vnp.__version__}" in run.stdout


def test_modules_and_subworkflow_know_no_parameters() -> None:
    parts = [*ROOT.glob("modules/**/main.nf"), *ROOT.glob("subworkflows/local/fasta_*/main.nf")]
    assert len(parts) == 7
    assert not [part for part in parts if "params" in part.read_text()]


def test_modules_name_this_version() -> None:
    for module in ROOT.glob("modules/local/virnucpro/*"):
        assert f"virnucpro:{vnp.__version__}'" in (module / "main.nf").read_text()
        assert f"virnucpro=={vnp.__version__}\n" in (module / "environment.yml").read_text()
