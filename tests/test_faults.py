"""Runs that are killed, tasks that fail, samples that are refused: what goes on, and from where."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_nextflow import DEMO, NEXTFLOW, ROOT, nextflow, pipeline, rows, tasks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NEXTFLOW is None, reason="no Nextflow: run make setup"),
]


def until(done: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < end
        time.sleep(0.2)


def test_resume_after_the_head_was_killed_runs_only_what_is_missing(tmp_path: Path) -> None:
    """One embed task waits until the head, everything else done, is gone."""
    wait = f"while [ ! -e {tmp_path}/go ]; do sleep 0.2; done"
    (tmp_path / "wait.config").write_text(
        "process { withName: VIRNUCPRO_EMBED { cpus = 1; memory = 1.GB\n"
        f"beforeScript = {{ meta.id == 'others_piece_00001' ? '{wait}' : '' }} }} }}\n"
    )
    words = [str(NEXTFLOW), "-c", "wait.config", "run", f"{ROOT}/main.nf", "-profile", "test"]
    with (tmp_path / "out").open("wb") as out:
        head = subprocess.Popen(
            words,
            cwd=tmp_path,
            env={**os.environ, "NXF_ANSI_LOG": "false"},
            stdout=out,
            stderr=out,
        )

    def rest_is_done() -> bool:
        if not (tmp_path / "results" / "phages" / "contigs.tsv").exists():
            return False
        done = tasks(tmp_path / "results", "COMPLETED")
        return done["EMBED"] == done["TRANSLATE"] - 1 and done["CLASSIFY"] == 1

    try:
        until(rest_is_done, head, 300)
        done = tasks(tmp_path / "results", "COMPLETED")
    finally:
        head.send_signal(signal.SIGKILL)
        head.wait()
        (tmp_path / "go").touch()
    run = nextflow(tmp_path, *words[1:], "-resume")
    assert run.returncode == 0, run.stdout
    cached, repeated = (tasks(tmp_path / "results", status) for status in ("CACHED", "COMPLETED"))
    print("cached:", dict(cached), "run:", dict(repeated))
    assert cached == done
    assert repeated == {"EMBED": 1, "MERGE": 1, "CLASSIFY": 1, "REPORT": 1}


def test_embed_task_killed_half_way_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """The killer acts once rows are finished; the second try keeps them."""
    fasta = re.sub(r"^(>\S+).*", r"\1", (DEMO / "phages.fasta").read_text(), flags=re.MULTILINE)
    copies = "".join(re.sub(r"^>", f">{n}_", fasta, flags=re.MULTILINE) for n in range(12))
    (tmp_path / "many.fasta").write_text(copies)
    blocks = tmp_path / "checkpoints"
    kill = (
        f"(until [ -s {blocks}/*/rank0.journal ]; do sleep 0.05; done; "
        f"pkill -KILL -f 'checkpoint-dir.{{0,2}}{blocks}') > /dev/null 2>&1 &"
    )
    (tmp_path / "kill.config").write_text(
        "env.VIRNUCPRO_DISABLE_PACKING = 'true'\n"
        "process { withName: VIRNUCPRO_EMBED {\n"
        f'beforeScript = {{ task.attempt == 1 ? "{kill}" : "" }} }} }}\n'
    )
    words = ["-profile", "test,gpu", "--device", "cpu", "--input", "many.fasta"]
    words += ["--shard_bp", "100000000", "--checkpoint_dir", "checkpoints"]
    run = nextflow(tmp_path, "-c", "kill.config", "run", f"{ROOT}/main.nf", *words)
    assert run.returncode == 0, run.stdout
    assert "-profile gpu asks for GPUs, and --device cpu leaves them idle" in run.stdout
    trace = rows(tmp_path / "results" / "pipeline_info" / "trace.txt")
    first, second = (row for row in trace if "EMBED" in row["name"])
    assert (first["exit"], second["exit"]) == ("137", "0")
    (task,) = tmp_path.glob(f"work/{second['hash']}*")
    said = (task / ".command.err").read_text()
    kept = re.search(r"(\d+) of (\d+) batches kept", said)
    assert kept, said
    print(kept[0])
    assert 0 < int(kept[1]) < int(kept[2])
    assert not list(blocks.iterdir())


def test_out_of_gpu_memory_and_killed_tasks_are_tried_again(tmp_path: Path) -> None:
    (tmp_path / "faults.config").write_text(
        "process { withName: VIRNUCPRO_EMBED { beforeScript = {\n"
        "    def exits = [phages_piece_00001: [4, 143], others_piece_00001: [137]][meta.id] ?: []\n"
        "    task.attempt <= exits.size() ? \"exit ${exits[task.attempt - 1]}\" : ''\n"
        "} } }\n"
    )
    words = ["run", f"{ROOT}/main.nf", "-profile", "test", "-stub"]
    run = nextflow(tmp_path, "-c", "faults.config", *words)
    assert run.returncode == 0, run.stdout
    exits: dict[str, list[str]] = {}
    trace = rows(tmp_path / "results" / "pipeline_info" / "trace.txt")
    for row in sorted(trace, key=lambda row: int(row["task_id"])):
        if "EMBED" in row["name"]:
            exits.setdefault(row["name"].split("(")[1], []).append(row["exit"])
    assert exits == {"phages_piece_00001)": ["4", "143", "0"], "others_piece_00001)": ["137", "0"]}


@pytest.fixture
def ten_samples(tmp_path: Path) -> Path:
    """A sheet of ten small samples, of which s6 is protein."""
    random.seed(1)
    for number in range(10):
        bases = "".join(random.choices("ACGT", k=700))
        text = ">p\nMKLVWERTYHIPLKDFE\n" if number == 6 else f">c{number}\n{bases}\n"
        (tmp_path / f"s{number}.fa").write_text(text)
    sheet = "sample,fasta\n" + "".join(f"s{number},s{number}.fa\n" for number in range(10))
    (tmp_path / "sheet.csv").write_text(sheet)
    return tmp_path


def test_ten_samples_one_broken_the_other_nine_finish(ten_samples: Path) -> None:
    run = pipeline(ten_samples, "--input", "sheet.csv")
    assert run.returncode != 0
    assert "Sample s6 was left out: virnucpro: s6.fa, line 2: 'L' is no nucleotide" in run.stdout
    results = ten_samples / "results"
    assert {path.parent.name for path in results.glob("*/contigs.tsv")} == {
        f"s{number}" for number in range(10) if number != 6
    }
    page = (results / "report" / "report.html").read_text()
    assert "s9" in page
    assert "1 of 10 samples was left out" in page
    assert "s6.fa, line 2: &#39;L&#39; is no nucleotide" in page
    assert tasks(results, "FAILED") == {"OUT": 1}


def test_mended_sample_is_done_by_resume(ten_samples: Path) -> None:
    """Stub runs do not read FASTA: real ones, of the broken sample and another."""
    (ten_samples / "two.csv").write_text("sample,fasta\ns5,s5.fa\ns6,s6.fa\n")
    words = ["--input", "two.csv", "-resume"]
    assert pipeline(ten_samples, *words).returncode != 0
    shutil.copy(ten_samples / "s7.fa", ten_samples / "s6.fa")
    run = pipeline(ten_samples, *words)
    assert run.returncode == 0, run.stdout
    assert tasks(ten_samples / "results", "CACHED")["CLASSIFY"] == 1
    assert (ten_samples / "results" / "s6" / "contigs.tsv").exists()
    assert "left out" not in (ten_samples / "results" / "report" / "report.html").read_text()


def test_on_bad_sample_stop_ends_the_run(ten_samples: Path) -> None:
    run = pipeline(ten_samples, "--input", "sheet.csv", "--on_bad_sample", "stop")
    assert run.returncode != 0
    assert "s6.fa, line 2: 'L' is no nucleotide" in run.stdout
    assert "was left out" not in run.stdout
    assert not list((ten_samples / "results").glob("report/report.html"))


def test_every_sample_refused_leaves_a_report_with_the_reasons(ten_samples: Path) -> None:
    (ten_samples / "trace.config").write_text("trace.enabled = false\n")
    words = ["-profile", "test", "--input", "s6.fa"]
    run = nextflow(ten_samples, "-c", "trace.config", "run", f"{ROOT}/main.nf", *words)
    assert run.returncode != 0
    (left_out,) = (line for line in run.stdout.splitlines() if "Sample s6 was" in line)
    assert left_out.startswith("ERROR ~ Sample s6 was left out: virnucpro: s6.fa, line 2: 'L' is")
    assert "Calls:  none, every sample was left out" in run.stdout
    assert "contigs.tsv" not in run.stdout
    assert (
        "1 of 1 sample was left out"
        in (ten_samples / "results" / "report" / "report.html").read_text()
    )
    assert not (ten_samples / "results" / "pipeline_info" / "trace.txt").exists()
