"""The pipeline on a real Slurm of one node, with faults. Only the GPUs are pretended."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from one_node import GPUS, Cluster, Job, most_at_once, one_node, why_not
from test_nextflow import NEXTFLOW, ROOT, rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NEXTFLOW is None, reason="no Nextflow: run make setup"),
    pytest.mark.skipif(why_not() is not None, reason=f"no Slurm: {why_not()}"),
]

# What happens to the first try of four embed tasks. A job that is cancelled or whose time is up
# gets its signal while it sleeps. Nextflow looks more often than it would, to be done sooner.
CONFIG = """
executor {
    pollInterval      = '1 sec'
    queueStatInterval = '2 sec'
    exitReadTimeout   = '10 sec'
}

process {
    withName: VIRNUCPRO_EMBED {
        beforeScript = {
            [
                phages_piece_00001: 'exit 137',
                phages_piece_00002: 'touch CANCEL; sleep 300',
                others_piece_00001: 'kill -9 $$',
                others_piece_00002: 'sleep 300',
            ][task.attempt == 1 ? meta.id : ''] ?: ''
        }
        time = {
            task.attempt == 1 && meta.id == 'others_piece_00002' ? 1.min : 10.min * task.attempt
        }
    }
}
"""


@dataclass(frozen=True)
class Run:
    """A finished run of the pipeline, and what Slurm recorded of it."""

    folder: Path
    jobs: list[Job]
    cancelled: int

    def tries(self, piece: str) -> list[Job]:
        return [job for job in self.embeds if f"({piece})" in job.name]

    @property
    def embeds(self) -> list[Job]:
        return [job for job in self.jobs if "VIRNUCPRO_EMBED" in job.name]

    @property
    def trace(self) -> list[dict[str, str]]:
        return rows(self.folder / "results" / "pipeline_info" / "trace.txt")

    def exits(self, piece: str) -> list[str]:
        """Exit codes that Nextflow saw, try by try."""
        tries = [row for row in self.trace if f"EMBED ({piece})" in row["name"]]
        return [row["exit"] for row in sorted(tries, key=lambda row: int(row["native_id"]))]


def cancel_the_one_that_asks(cluster: Cluster, folder: Path, cancelled: list[int]) -> None:
    """scancel the job that left a file CANCEL in its folder, once it runs."""
    while not cancelled:
        time.sleep(0.5)
        if list(folder.glob("work/*/*/CANCEL")):
            for job, name in cluster.running().items():
                if "(phages_piece_00002)" in name:
                    cluster.run("scancel", str(job))
                    cancelled.append(job)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with one_node(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="module")
def run(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("launch")
    (folder / "faults.config").write_text(CONFIG)
    words = ["-profile", "test,slurm,gpu", "--devices", "cpu", "--shard_bp", "20000"]
    words += ["--queue", "all", "--gpu_queue", "gpu", "--cluster_options=--comment=virnucpro"]
    cancelled: list[int] = []
    canceller = threading.Thread(
        target=cancel_the_one_that_asks, args=(cluster, folder, cancelled), daemon=True
    )
    canceller.start()
    done = subprocess.run(
        [str(NEXTFLOW), "-c", "faults.config", "run", str(ROOT / "main.nf"), *words],
        cwd=folder,
        env={**os.environ, **cluster.env, "NXF_ANSI_LOG": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    cancelled.append(0)  # ends the canceller, had it nothing to do
    assert done.returncode == 0, done.stdout
    time.sleep(1)
    finished = Run(folder, cluster.jobs(), cancelled[0])
    for job in finished.embeds:
        print(job.id, job.name.rpartition("_EMBED_")[2], job.state, job.exit, job.minutes, job.tres)
    print("embed jobs at once:", most_at_once(finished.embeds))
    return finished


def test_run_with_killed_cancelled_and_overdue_jobs_finishes(run: Run) -> None:
    calls = rows(run.folder / "results" / "phages" / "contigs.tsv")
    assert {row["contig"]: row["call"] for row in calls}["lambda"] == "virus"


def test_every_task_was_a_job(run: Run) -> None:
    assert sorted(int(row["native_id"]) for row in run.trace) == [job.id for job in run.jobs]


def test_no_more_embed_jobs_at_once_than_gpus(run: Run) -> None:
    assert len(run.embeds) > 2 * GPUS
    assert most_at_once(run.embeds) == GPUS


def test_embed_alone_asks_for_a_gpu_and_its_queue(run: Run) -> None:
    asked = Counter()
    for script in run.folder.glob("work/*/*/.command.run"):
        text = script.read_text()
        assert "#SBATCH --comment=virnucpro" in text or "--comment=virnucpro\n" in text
        asked["EMBED" in text.splitlines()[1], "--gres=gpu:1" in text] += 1
    assert {job.partition for job in run.embeds} == {"gpu"}
    assert {job.partition for job in run.jobs if job not in run.embeds} == {"all"}
    assert asked[True, True] == len(run.embeds)
    assert asked[False, True] == asked[True, False] == 0


def test_killed_job_is_tried_again_with_more(run: Run) -> None:
    first, second = run.tries("phages_piece_00001")
    assert run.exits("phages_piece_00001") == ["137", "0"]
    assert (first.state, second.state) == ("FAILED", "COMPLETED")
    assert int(second.minutes) == 2 * int(first.minutes)
    assert ("mem=32G" in first.tres, "mem=64G" in second.tres) == (True, True)


def test_cancelled_job_is_tried_again(run: Run) -> None:
    first, second = run.tries("phages_piece_00002")
    assert first.id == run.cancelled
    assert (first.state, second.state) == ("CANCELLED", "COMPLETED")


def test_job_without_an_exit_code_is_tried_again(run: Run) -> None:
    first, second = run.tries("others_piece_00001")
    assert run.exits("others_piece_00001") == ["-", "0"]
    assert (first.state, second.state) == ("FAILED", "COMPLETED")


def test_job_out_of_time_is_tried_again_with_more(run: Run) -> None:
    first, second = run.tries("others_piece_00002")
    code, last = run.exits("others_piece_00002")
    assert code in ("140", "143")  # of the warning, or of the end
    assert last == "0"
    assert (first.state, second.state) == ("TIMEOUT", "COMPLETED")
    assert (int(first.minutes), int(second.minutes)) == (1, 20)
