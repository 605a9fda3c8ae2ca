"""Which devices a run takes, and that two runs never share a GPU. The GPUs are pretended."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from damage import at_most

from virnucpro_core.embedding.devices import gpu_facts, identity, is_leased, leased
from virnucpro_core.embedding.encoders import FrameEncoder
from virnucpro_core.embedding.engine import embed
from virnucpro_core.errors import GpuMemoryError, InputError
from virnucpro_core.models.store import Model

HOLD = """
import os, sys, time, torch
from virnucpro_core.embedding import devices
from virnucpro_core.embedding.devices import leased
seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")
torch.cuda.device_count = lambda: len(seen)
devices.identity = lambda device: f"GPU-{seen[device.index]}"
with leased(sys.argv[1], int(sys.argv[2]) or None) as devices:
    print(*devices, flush=True)
    time.sleep(100)
"""

Hold = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """Start a process that takes GPUs, of two, and keeps them until it is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(devices: str, gpus: int = 0, **env: str) -> subprocess.Popen[str]:
        free = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, devices, str(gpus)],
            env={**free, "VIRNUCPRO_LOCKS": str(tmp_path), **env},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def took(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_lease_passes_to_the_run_that_waits_when_its_holder_is_killed(hold: Hold) -> None:
    first, second = hold("auto", 1), hold("auto", 1)
    assert {took(first), took(second)} == {"cuda:0", "cuda:1"}
    third = hold("cuda", 1)
    assert third.stdout is not None
    assert not select.select([third.stdout], [], [], 5)[0]  # it waits
    second.kill()
    assert took(third) in ("cuda:0", "cuda:1")


def test_lease_auto_takes_every_gpu_that_is_free(hold: Hold) -> None:
    assert took(hold("cuda:1")) == "cuda:1"
    assert took(hold("auto")) == "cuda:0"


def test_lease_of_gpus_that_were_named_before_is_no_lease_of_the_same_one_twice(
    hold: Hold,
) -> None:
    """Two tasks of one allocation (salloc, CUDA_VISIBLE_DEVICES=0,1) once shared its first GPU."""
    named = {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_JOB_GPUS": "0,1"}
    tasks = [hold("auto", 1, **named) for _ in range(2)]
    assert {took(task) for task in tasks} == {"cuda:0", "cuda:1"}


def test_lease_knows_a_gpu_by_its_identity_not_by_its_number(hold: Hold) -> None:
    """Each job of a scheduler may see its own GPU as number 0."""
    assert took(hold("auto", CUDA_VISIBLE_DEVICES="3")) == "cuda:0"
    assert took(hold("auto", CUDA_VISIBLE_DEVICES="5")) == "cuda:0"
    assert took(hold("auto", 1, CUDA_VISIBLE_DEVICES="5,3,4")) == "cuda:2"


def test_lease_that_waits_for_two_holds_neither(hold: Hold) -> None:
    first = hold("cuda:1")
    assert took(first) == "cuda:1"
    both = hold("cuda", 2)
    assert both.stdout is not None
    assert not select.select([both.stdout], [], [], 4)[0]
    assert took(hold("cuda:0")) == "cuda:0"


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, "u1"), ("0,1", "u1"), ("GPU-a,GPU-b", "u1"), ("MIG-x,MIG-y", "MIG-y"), ("MIG-x", "u1")],
)
def test_identity_is_the_uuid_or_what_names_a_slice(
    visible: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def properties(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(uuid=f"u{device.index}")

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert identity(torch.device("cuda:1")) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_identity_of_each_gpu_is_its_uuid() -> None:
    devices = [torch.device(f"cuda:{n}") for n in range(torch.cuda.device_count())]
    said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    assert len({identity(device) for device in devices}) == len(devices)
    assert all(identity(device).removeprefix("GPU-") in said for device in devices)


def test_lease_under_a_strict_umask_can_be_opened_by_other_users(
    hold: Hold, tmp_path: Path
) -> None:
    before = os.umask(0o077)
    try:
        assert took(hold("cuda:1")) == "cuda:1"
    finally:
        os.umask(before)
    assert (tmp_path / "virnucpro-GPU-1.lock").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_lease_where_another_user_has_put_something_else_neither_follows_nor_waits(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRNUCPRO_LOCKS", str(tmp_path))
    monkeypatch.setattr("virnucpro_core.embedding.devices.identity", lambda _: "GPU-1")
    path = tmp_path / "virnucpro-GPU-1.lock"
    if kind == "link":
        path.symlink_to("target")
    else:
        os.mkfifo(path)
    with at_most(5), suppress(OSError):
        assert not is_leased(torch.device("cuda:1"))
    assert not (tmp_path / "target").exists()


def test_lease_of_the_cpu_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRNUCPRO_LOCKS", str(tmp_path / "absent"))
    with leased("cpu") as devices:
        assert devices == [torch.device("cpu")]


def test_gpus_asked_for_where_the_cpu_works_are_missed_aloud(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with leased("cpu", 2):
        assert "2 GPU(s) asked for, but the CPU works: " in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    words = ["embed", "none.parquet", "-o", "none.h5", "--model", "mini"]
    run = subprocess.run(
        [sys.executable, "-m", "virnucpro_core.cli", *words, "--device", "cuda"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("virnucpro: there is no GPU to use: ")
    assert "driver" in run.stderr
    assert time.monotonic() - start < 60  # a machine that is busy; 2 to 4 s on one that is not
    assert not list(tmp_path.iterdir())


def test_named_gpu_that_is_not_there_is_refused_with_the_facts() -> None:
    with (
        pytest.raises(InputError, match="'cuda:9' is not there: CUDA sees"),
        leased("cuda:9"),
    ):
        pass


def test_out_of_gpu_memory_has_an_exit_code_of_its_own(
    edge_frames: Path, tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 5 GiB")

    monkeypatch.setattr(FrameEncoder, "__init__", full)
    with pytest.raises(GpuMemoryError, match="while loading tiny") as refused:
        embed(edge_frames, tmp_path / "shard.h5", tiny, devices="cpu")
    assert refused.value.exit_code == 4


def test_facts_of_gpus_name_what_hides_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES is ''" in gpu_facts()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert "CUDA_VISIBLE_DEVICES" not in gpu_facts()
