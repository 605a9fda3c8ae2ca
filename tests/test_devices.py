"""Which devices a run takes, and that two runs never share a GPU. The GPUs are pretended."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from damage import at_most

from virnucpro_core.embedding.devices import (
    SMI,
    default_precision,
    gpu_facts,
    identity,
    is_leased,
    leased,
)
from virnucpro_core.embedding.encoders import FrameEncoder
from virnucpro_core.embedding.engine import embed
from virnucpro_core.errors import GpuMemoryError, InputError
from virnucpro_core.models.store import Model

See = Callable[..., None]


@pytest.fixture
def see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[See]:
    """Have this process see GPUs of these names.

    A lock of another open file counts as one of another process.
    """
    seen: list[str] = []
    monkeypatch.setenv("VIRNUCPRO_LOCKS", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(seen))
    monkeypatch.setattr(
        "virnucpro_core.embedding.devices.identity", lambda device: f"GPU-{seen[device.index]}"
    )

    def see(*names: str) -> None:
        seen[:] = names

    with at_most(20):
        yield see


def places(*names: str) -> list[torch.device]:
    return [torch.device(name) for name in names]


def test_lease_auto_takes_every_gpu_that_is_free_and_says_which(
    see: See, caplog: pytest.LogCaptureFixture
) -> None:
    see("a", "b", "c")
    with (
        caplog.at_level("INFO", "virnucpro"),
        leased("cuda:1") as one,
        leased("auto") as rest,
    ):
        assert one == places("cuda:1")
        assert rest == places("cuda:0", "cuda:2")
    assert caplog.messages == ["auto took cuda:0, cuda:2"]


def test_lease_of_gpus_that_were_named_before_is_no_lease_of_the_same_one_twice(
    see: See, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks of one allocation (salloc, CUDA_VISIBLE_DEVICES=0,1) once shared its first GPU."""
    see("a", "b")
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS"):
        monkeypatch.setenv(name, "0,1")
    with leased("auto", 1) as first, leased("auto", 1) as second:
        assert first + second == places("cuda:0", "cuda:1")


def test_lease_knows_a_gpu_by_its_identity_not_by_its_number(see: See) -> None:
    """Each job of a scheduler may see its own GPU as number 0."""
    with ExitStack() as jobs:
        for names, expected in (("d", "cuda:0"), ("f", "cuda:0"), ("fde", "cuda:2")):
            see(*names)
            assert jobs.enter_context(leased("auto", 1)) == places(expected)


def test_lease_of_a_list_is_of_each_once_however_often_it_is_named(see: See) -> None:
    see("a", "b", "c")
    with leased("cuda:1,cuda:1,cuda:0") as named, leased("auto") as rest:
        assert named == places("cuda:1", "cuda:1", "cuda:0")
        assert rest == places("cuda:2")


def test_lease_is_seen_while_it_lasts_by_a_look_that_leaves_no_file_open(see: See) -> None:
    see("a")
    with leased("cuda") as (gpu,):
        before = set(Path("/proc/self/fd").iterdir())
        assert is_leased(gpu)
        assert set(Path("/proc/self/fd").iterdir()) == before
    assert not is_leased(gpu)


def test_lease_under_a_strict_umask_can_be_opened_by_other_users(see: See, tmp_path: Path) -> None:
    see("a")
    before = os.umask(0o077)
    try:
        with leased("cuda:0"):
            assert (tmp_path / "virnucpro-GPU-a.lock").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EBADF, errno.EOPNOTSUPP])
def test_lease_in_a_folder_without_locks_is_warned_of_and_given(
    error: int,
    see: See,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def flock(*_: int) -> None:
        raise OSError(error, os.strerror(error))

    see("a")
    monkeypatch.setattr("fcntl.flock", flock)
    with leased("auto") as gpus:
        assert gpus == places("cuda:0")
    assert f"{tmp_path}: this file system has no locks ({os.strerror(error)})" in caplog.text


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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gpu", "'gpu' is not known; give auto, cpu, cuda or cuda:0,cuda:1"),
        ("cpu,tpu:0", "'tpu:0' is not known"),
        ("cuda:x", "'cuda:x' is not known"),
        (f"cuda:{torch.cuda.device_count()}", "is not there: CUDA sees"),
    ],
)
def test_device_that_is_unknown_or_not_there_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says), leased(text):
        pass


@pytest.mark.parametrize(("device", "precision"), [("cpu", "fp32"), ("cuda:0", "fp16")])
def test_precision_unless_one_is_asked_for_is_half_on_a_gpu_alone(
    device: str, precision: str
) -> None:
    assert default_precision(torch.device(device)) == precision


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
    assert ("without CUDA" in gpu_facts()) is (torch.version.cuda is None)


@pytest.mark.parametrize(
    ("driver", "smi", "says"),
    [
        ("", "", "no NVIDIA driver is loaded"),
        ("NVRM 570\nGCC 12\n", "", "NVRM 570; no nvidia-smi to say more"),
        ("NVRM", "echo 0, H100; echo 1, H100", f"nvidia-smi ({SMI}): 0, H100; 1, H100"),
        ("NVRM", "echo no devices >&2; exit 6", f"nvidia-smi ({SMI}): no devices"),
        ("NVRM", "exec /bin/sleep 9", "nvidia-smi does not answer"),
    ],
)
def test_facts_of_gpus_are_what_the_driver_and_nvidia_smi_say(
    driver: str, smi: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virnucpro_core.embedding.devices.DRIVER", tmp_path / "version")
    if driver:
        (tmp_path / "version").write_text(driver)
    monkeypatch.setenv("PATH", str(tmp_path))
    if smi:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{smi}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    if "sleep" in smi:
        monkeypatch.setattr("virnucpro_core.embedding.devices.SMI_SECONDS", 0.3)
    with at_most(8):
        assert gpu_facts().endswith(says)


HOLD = """
import logging, sys, time, torch
from virnucpro_core.embedding import devices
logging.basicConfig(level="INFO")
torch.cuda.device_count = lambda: 2
devices.identity = lambda device: f"GPU-{'ab'[device.index]}"
with devices.leased(sys.argv[1], int(sys.argv[2])) as taken:
    print(*taken, flush=True)
    time.sleep(100)
"""

Hold = Callable[[str, int], subprocess.Popen[str]]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """Start a process that takes GPUs, of two, and keeps them until it is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(devices: str, gpus: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, devices, str(gpus)],
            env={**os.environ, "VIRNUCPRO_LOCKS": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
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
    with at_most(60):
        return process.stdout.readline().strip()


def until_it_waits(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    with at_most(60):
        said = process.stderr.readline()
    assert "waiting for a GPU: other runs hold cuda:0, cuda:1" in said


def worked(process: subprocess.Popen[str]) -> float:
    """Seconds of a core that a process has taken."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_lease_passes_to_the_run_that_waits_when_its_holder_is_killed(hold: Hold) -> None:
    first, second = hold("auto", 1), hold("auto", 1)
    assert {took(first), took(second)} == {"cuda:0", "cuda:1"}
    third = hold("cuda", 1)
    until_it_waits(third)
    before = worked(third)
    pipes = [one for one in (third.stdout, third.stderr) if one]
    assert not select.select(pipes, [], [], 2)[0], "it has said so once"
    assert worked(third) - before < 0.2, "it sleeps"
    second.kill()
    assert took(third) in ("cuda:0", "cuda:1")


def test_lease_that_waits_for_two_holds_neither(see: See, hold: Hold) -> None:
    see("a", "b")
    with leased("cuda:1"):
        both = hold("cuda", 2)
        until_it_waits(both)
        with leased("cuda:0"):
            pass
    assert took(both) == "cuda:0 cuda:1"


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
