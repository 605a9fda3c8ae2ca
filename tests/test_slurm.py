"""The pipeline on a real Slurm of one node, with faults. Only the GPUs are pretended."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from one_node import GPUS, NODE, Cluster, Job, most_at_once, one_node, why_not
from test_nextflow import DEMO, NEXTFLOW, ROOT, rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NEXTFLOW is None, reason="no Nextflow: run make setup"),
    pytest.mark.skipif(why_not() is not None, reason=f"no Slurm: {why_not()}"),
]

# Nextflow looks more often than it would, to be done sooner.
OFTEN = """
executor {
    pollInterval      = '1 sec'
    queueStatInterval = '2 sec'
    exitReadTimeout   = '10 sec'
}
"""
# What happens to the first try of four embed tasks. A job that is cancelled or whose time is up
# gets its signal while it sleeps.
FAULTS = """
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
# The first try of the one embed task is still at it when its node goes.
WAITS = """
process {
    withName: VIRNUCPRO_EMBED {
        beforeScript = { task.attempt == 1 ? 'touch RUNS; sleep 300' : '' }
    }
}
"""


@dataclass(frozen=True)
class Run:
    """A finished run of the pipeline, and what Slurm recorded of it."""

    folder: Path
    jobs: list[Job]

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


def launch(
    cluster: Cluster, folder: Path, config: str, words: list[str], meddle: Callable[[], bool]
) -> Run:
    """A run to its end, during which `meddle` is tried until it has acted on a job."""
    earlier = {job.id for job in cluster.jobs()}
    (folder / "faults.config").write_text(OFTEN + config)
    ended = threading.Event()

    def try_it() -> None:
        while not ended.wait(0.5) and not meddle():
            pass

    with ThreadPoolExecutor(1) as pool:
        meddler = pool.submit(try_it)
        try:
            done = subprocess.run(
                [str(NEXTFLOW), "-c", "faults.config", "run", str(ROOT / "main.nf"), *words],
                cwd=folder,
                env={**os.environ, **cluster.env, "NXF_ANSI_LOG": "false"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=900,
            )
        finally:
            ended.set()
    meddler.result()
    assert done.returncode == 0, done.stdout
    time.sleep(1)
    run = Run(folder, [job for job in cluster.jobs() if job.id not in earlier])
    for job in run.embeds:
        print(job.id, job.name.rpartition("_EMBED_")[2], job.state, job.exit, job.minutes, job.tres)
    print("embed jobs at once:", most_at_once(run.embeds))
    return run


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with one_node(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="module")
def run(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("launch")
    words = ["-profile", "test,slurm,gpu", "--device", "cpu", "--shard_bp", "20000"]
    words += ["--queue", "all", "--gpu_queue", "gpu", "--cluster_options=--comment=virnucpro"]

    def cancel_the_one_that_asks() -> bool:
        asked = bool(list(folder.glob("work/*/*/CANCEL")))
        found = [job for job, name in cluster.running().items() if "(phages_piece_00002)" in name]
        if asked and found:
            cluster.run("scancel", str(found[0]))
        return asked and bool(found)

    return launch(cluster, folder, FAULTS, words, cancel_the_one_that_asks)


def test_run_with_killed_cancelled_and_overdue_jobs_finishes(run: Run) -> None:
    calls = rows(run.folder / "results" / "phages" / "contigs.tsv")
    assert {row["contig"]: row["call"] for row in calls}["phix174"] == "virus"


def test_every_task_was_a_job(run: Run) -> None:
    assert sorted(int(row["native_id"]) for row in run.trace) == [job.id for job in run.jobs]


def test_no_more_embed_jobs_at_once_than_gpus(run: Run) -> None:
    assert len(run.embeds) > 2 * GPUS
    assert most_at_once(run.embeds) == GPUS


def test_embed_alone_asks_for_a_gpu_and_its_queue(run: Run) -> None:
    asked: Counter[tuple[bool, bool]] = Counter()
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


def test_job_whose_node_is_taken_away_is_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    """The node is closed, which lets the job be, then down, which ends it, and comes back later."""
    seen: list[bool] = []

    def set_node(**what: str) -> None:
        words = [f"{name}={value}" for name, value in what.items()]
        cluster.run("scontrol", "update", f"nodename={NODE}", *words)

    def take_the_node_away() -> bool:
        if not list(tmp_path.glob("work/*/*/RUNS")):
            return False
        before = cluster.running()
        try:
            set_node(state="drain", reason="maintenance")
            time.sleep(3)
            seen.append(cluster.running() == before)
            set_node(state="down", reason="maintenance")
            time.sleep(8)
            seen.append(not cluster.running())
        finally:
            set_node(state="resume")
        return True

    words = ["-profile", "test,slurm,gpu", "--device", "cpu", "--shard_bp", "100000000"]
    words += ["--input", str(DEMO / "phages.fasta"), "--checkpoint_dir", "checkpoints"]
    run = launch(cluster, tmp_path, WAITS, words, take_the_node_away)
    assert seen == [True, True]
    first, second = run.embeds
    assert (first.state, second.state) == ("NODE_FAIL", "COMPLETED")
    code, last = run.exits("phages_piece_00001")
    print("exit codes that Nextflow saw:", code, last)
    assert code in ("-", "143")  # none, or that of the signal which ended it
    assert last == "0"
    calls = rows(tmp_path / "results" / "phages" / "contigs.tsv")
    assert {row["contig"]: row["call"] for row in calls}["phix174"] == "virus"
