"""Real Nextflow runs. One run of the demo feeds most tests; the others stop early or are stubs."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import Page

import virnucpro_core as vnp
from virnucpro_core.models.layout import Stored, read_weights
from virnucpro_core.models.store import resolve_model
from virnucpro_core.published.writing import write_head

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "assets" / "demo"
MADE_BY_SETUP = ROOT / "nextflow"
NEXTFLOW = str(MADE_BY_SETUP) if MADE_BY_SETUP.exists() else shutil.which("nextflow")

pytestmark = pytest.mark.skipif(NEXTFLOW is None, reason="no Nextflow: run make setup")

Run = Callable[..., subprocess.CompletedProcess[str]]


BARE = {"LC_ALL": "C", "LANG": "C"}
"""The locale of cron, or of `env -i`."""


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


def test_phages_are_viruses_and_a_chloroplast_is_none(results: Path) -> None:
    calls = {
        row["contig"]: row["call"]
        for sample in ("phages", "others")
        for row in rows(results / sample / "contigs.tsv")
    }
    assert calls["phix174"] == calls["lambda_2000bp"] == "virus"
    assert calls["chloroplast_4000bp"] == calls["streptomyces"] == "other"


def test_work_is_told_once_when_all_samples_are_split(launched: Path) -> None:
    said = (launched / "said.txt").read_text()
    (work,) = re.findall("^Work: .*$", said, re.MULTILINE)
    assert re.fullmatch(
        r"Work:   2 samples of 115,\d{3} bases in 4 pieces, with mini; "
        r"embedding takes about [\dms ]+ on one cpu \(--device_class\)",
        work,
    )
    assert said.index(work) < said.index("VIRNUCPRO_MERGE")


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
        "regions.tsv",
        "regions.gff3",
        "regions.fasta.gz",
        "contigs.parquet",
        "prediction_results.txt",
        "prediction_results_highestscore.csv",
        "summary.json",
    }
    assert published == {
        *(f"{sample}/{name}" for sample in ("phages", "others") for name in of_a_sample),
        "report/report.html",
        "report/virnucpro_mqc.json",
        "report/virnucpro_calls_mqc.json",
        "report/virnucpro_general_mqc.json",
        "report/virnucpro_scores_mqc.json",
        "report/virnucpro_mqc_versions.yml",
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


def test_report_shows_what_the_user_ran_and_for_how_long(results: Path) -> None:
    page = Page((results / "report" / "report.html").read_text())
    assert re.search(
        r"Command (/\S*/)?nextflow run \S+main\.nf -profile test --outdir results "
        r"Run \w+_\w+, session [\w-]{36}, Nextflow [\d.]+",
        page.words,
    )
    stages = r"embed \d+\.\d s, classify <?\d+\.\d s"
    assert len(re.findall(rf"UTC {stages} ", page.words)) == 2
    assert re.search(rf"Time {stages} \(all samples and tasks added up\)", page.words)
    assert re.search(r"Embedded on CPU, fp32: \d+\.\d s of 4 processes, at most", page.words)
    for name in ("phages", "others"):
        size = (DEMO / f"{name}.fasta").stat().st_size
        assert f"{name} Input {name}.fasta ({size:,} bytes)" in page.words
    assert "virnucpro classify" not in page.words


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


@pytest.mark.parametrize(
    "words", [["--help"], ["-preview"], ["--outdr", "x"], ["--input", "gone.fa"]], ids="=".join
)
def test_records_of_the_last_run_outlast_what_is_no_run(
    words: list[str], results: Path, tmp_path: Path
) -> None:
    info = tmp_path / "results" / "pipeline_info"
    shutil.copytree(results / "pipeline_info", info)
    before = {path.name: path.read_bytes() for path in info.iterdir()}
    said = pipeline(tmp_path, *words).stdout
    assert {path.name: path.read_bytes() for path in info.iterdir()} == before
    assert "left out" not in said


def test_software_versions_are_told(results: Path) -> None:
    versions = (results / "pipeline_info" / "software_versions.yml").read_text()
    assert f"VIRNUCPRO_EMBED:\n    virnucpro: {vnp.__version__}\n" in versions
    assert "Nextflow: " in versions


def test_resume_repeats_only_what_the_change_touches(launched: Path) -> None:
    """Where checkpoints are kept touches nothing."""
    words = ["--min_score", "0.9", "--checkpoint_dir", "kept"]
    run = pipeline(launched, "--outdir", "again", *words, "-resume")
    assert run.returncode == 0, run.stdout
    first = tasks(launched / "results", "COMPLETED")
    cached, repeated = (tasks(launched / "again", status) for status in ("CACHED", "COMPLETED"))
    assert repeated == {"CLASSIFY": 2, "REPORT": 1}
    assert cached == first - repeated


def test_resume_after_a_model_was_imported_repeats_what_it_computed(tmp_path: Path) -> None:
    """Stub runs: the second beside a new model, the third with a model imported again.

    The report, which tells of what lies beside it, is made by each run.
    """
    models = tmp_path / "models"
    shutil.copytree(Path(vnp.__file__).parent / "mini", models / "own")

    def run() -> Counter[str]:
        words = ["--model", "own", "--models_dir", "models", "-stub", "-resume"]
        done = pipeline(tmp_path, *words)
        assert done.returncode == 0, done.stdout
        return tasks(tmp_path / "results", "COMPLETED")

    assert run()["EMBED"] == 2
    (models / "another").mkdir()
    assert run() == {"REPORT": 1}
    (models / "own" / "imported").touch()
    assert run() == {"EMBED": 2, "MERGE": 2, "CLASSIFY": 2, "REPORT": 1}


def test_a_model_that_borrows_its_encoders_runs_with_them_beside_it(tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(Path(vnp.__file__).parent / "mini", models / "lender")
    lender = resolve_model("lender", models)
    classifier = Stored(lender.classifier, {}, read_weights(lender.classifier))
    write_head(models / "own", lender, classifier)
    (tmp_path / "in.fa").write_text(f">a\n{'GCA' * 200}\n")
    words = ["--input", "in.fa", "--model", "own", "--models_dir", "models"]
    done = pipeline(tmp_path, *words)
    assert done.returncode == 0, done.stdout
    assert tasks(tmp_path / "results", "COMPLETED")["CLASSIFY"] == 1
    (models / "lender/model.json").unlink()
    assert "uses the encoders of the model 'lender'" in pipeline(tmp_path, *words).stdout


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


@pytest.mark.parametrize("code", [1, 139])
def test_full_disk_and_crash_are_not_tried_again(code: int, tmp_path: Path) -> None:
    (tmp_path / "crash.config").write_text(
        f"process {{ withName: VIRNUCPRO_SPLIT {{ beforeScript = 'exit {code}' }} }}\n"
    )
    words = ["-stub", "-c", "crash.config", "--input", f"{DEMO}/phages.fasta", "--model", "mini"]
    run = nextflow(tmp_path, "run", f"{ROOT}/main.nf", *words)
    assert run.returncode != 0
    assert tasks(tmp_path / "results", "FAILED") == {"SPLIT": 1}


@pytest.mark.parametrize(
    ("text", "words", "sentence"),
    [
        (">p\nMKLVWERTYHIPLKDFE\n", [], "protein.fa"),
        (
            ">c\nACGTACGT\n",
            ["--model", "empty", "--models_dir", "."],
            "model.json: is of format None; import the model again",
        ),
    ],
)
def test_refusal_of_a_task_reaches_the_user_as_the_last_word(
    text: str, words: list[str], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "protein.fa").write_text(text)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "model.json").write_text('{"window": 500}')
    run = pipeline(tmp_path, "--input", "protein.fa", *words)
    assert run.returncode != 0
    *_, last = (line for line in run.stdout.splitlines() if line.startswith("ERROR ~ "))
    assert sentence in last
    assert "Traceback" not in run.stdout
    assert "retried" not in run.stdout


def test_sentence_of_a_full_disk_is_the_last_word(tmp_path: Path) -> None:
    """A stand-in for the tool says it."""
    (tmp_path / "path").mkdir()
    tool = tmp_path / "path" / "virnucpro"
    tool.write_text(
        "#!/bin/sh\necho 'virnucpro: /x: No space left on device; mend that' >&2\nexit 1\n"
    )
    tool.chmod(0o755)
    run = pipeline(tmp_path, PATH=f"{tool.parent}:{os.environ['PATH']}")
    *_, last = (line for line in run.stdout.splitlines() if line.startswith("ERROR ~ "))
    assert last == "ERROR ~ virnucpro: /x: No space left on device; mend that"


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
