"""Every call of every stage that changes a file may fail: a sentence, and the same command goes on.

The whole of it is `python tests/disk_faults.py`, see docs/benchmarks.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from disk_faults import Sweep, failing_disk
from stages import STAGES


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("faults")
    with failing_disk(folder) as disk:
        yield Sweep(folder, disk)


@pytest.mark.parametrize("stage", STAGES)
def test_any_call_that_fails_is_a_sentence_and_the_same_command_gives_the_unbroken_result(
    stage: str, sweep: Sweep
) -> None:
    over = list(STAGES).index(stage) % 2 == 0
    assert [case for case in sweep.of(stage, over, 2, 5) if case.wrong] == []


@pytest.mark.parametrize(
    ("stage", "fault", "kind", "file"),
    [
        ("split", "EIO", "close", ".contigs.parquet.partial"),  # had no errno, by Arrow's own file
        ("split", "EIO from then on", "sync", ".piece_00001.fasta.partial"),  # an ignored exception
        ("split", "SIGTERM", "rename", "piece_00001.fasta"),  # left a piece of no known input
        ("models import", "EIO from then on", "rename", "model.safetensors"),  # named no file
        ("embed", "EIO", "remove", "rank0.journal"),  # named it without its folder
        ("embed", "EIO", "sync", "shard.h5"),  # the seal's named none
        ("predict", "SIGKILL", "open", "..input.json.partial"),  # left a folder of no known input
        ("predict", "SIGKILL", "remove", "contigs.parquet"),
    ],
)
def test_call_that_failed_otherwise_once_is_a_sentence_and_the_same_command_goes_on(
    stage: str, fault: str, kind: str, file: str, sweep: Sweep
) -> None:
    calls = sweep.unbroken(stage, False)
    at = [
        n for n, call in enumerate(calls) if (call.kind, call.path.split("/")[-1]) == (kind, file)
    ]
    assert at
    assert [case for n in at if (case := sweep.case(fault, calls[n], n)).wrong] == []


@pytest.mark.slow
@pytest.mark.parametrize("over", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_many_calls_that_fail_are_a_sentence_each_and_the_same_command_gives_the_unbroken_result(
    stage: str, over: bool, sweep: Sweep
) -> None:
    cases = list(sweep.of(stage, over, 3))
    assert len(cases) > 80
    assert [case for case in cases if case.wrong] == []
