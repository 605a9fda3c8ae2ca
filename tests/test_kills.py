"""Stages killed at any moment, in any way: then old or new, nothing between."""

from __future__ import annotations

from pathlib import Path

import pytest
from kills import STAGES, harness
from pipeline_kills import kill_pipelines
from test_nextflow import NEXTFLOW


@pytest.mark.slow
def test_stages_killed_a_hundred_times_give_the_unbroken_runs_results(tmp_path: Path) -> None:
    summary = harness(tmp_path, 100, seed=12)
    record = summary.record()
    print(record)
    assert record["kills"] >= 100
    assert summary.results.keys() == set(STAGES)
    assert record["kills_by"]["place"].keys() == {"parent", "worker", "group"}
    assert record["embedded"]["kills"] > 0
    # of what a checkpoint interval holds, and what is written beside it
    assert record["embedded"]["most_intervals_lost"] <= 2
    assert record["embedded"]["again"] <= sum(summary.lost)


@pytest.mark.slow
@pytest.mark.skipif(NEXTFLOW is None, reason="no Nextflow: run make setup")
def test_pipeline_killed_in_any_place_gives_the_unbroken_runs_results(tmp_path: Path) -> None:
    kills = kill_pipelines(tmp_path, 3, 12)
    print(kills)
    assert kills.total() > 0


def test_stages_killed_a_few_times_give_the_unbroken_runs_results(tmp_path: Path) -> None:
    summary = harness(tmp_path, 4, seed=1, stages=["merge", "report"])
    assert summary.kills.total() >= 4
