"""Processes side by side: their logs, their deaths, and signals."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from tiny import repeated_frames

from virnucpro_core.embedding import standby
from virnucpro_core.embedding.shards import EmbeddingFile
from virnucpro_core.embedding.workers import run_ranks
from virnucpro_core.errors import InputError, ModelError, StoppedError, VirNucProError

TWO = ["cpu", "cpu"]
logger = logging.getLogger("virnucpro.test")


@dataclass(frozen=True)
class Task:
    """Where workers leave what they finished, and how the one of rank 0 ends."""

    folder: Path
    end: str = "done"


def work(task: Task, device: str, rank: int, world: int, stop: Event) -> None:
    """Rank 0 ends as the task says; the other one finishes once that was noticed."""
    assert (device, world) == ("cpu", 2)
    logger.info("rank %d is at work", rank)
    pid = task.folder / "pid"
    if rank == 0:
        pid.with_suffix(".partial").write_text(str(os.getpid()))
        pid.with_suffix(".partial").rename(pid)
        for number in range(20):
            print(f"printed {number}")
        if task.end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if task.end == "exit":
            os.write(2, b"last words of a library\n")
            os._exit(3)
        if task.end == "quiet exit":
            os._exit(0)
        if task.end == "crash":
            ctypes.string_at(0)
        if task.end == "refusal":
            raise ModelError("weights.pt: is damaged; fetch the model again.")
        if task.end == "exception":
            raise ZeroDivisionError("a bug")
    else:
        until(pid.exists)
        until(lambda: not Path("/proc", pid.read_text()).exists())
        pid.unlink()
    (task.folder / f"rank{rank}").touch()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def done_as_a_signal_comes(task: Task, device: str, rank: int, world: int, stop: Event) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.wait(60)


def wait_for_stop(task: Task, device: str, rank: int, world: int, stop: Event) -> None:
    (task.folder / f"ready{rank}").touch()
    assert stop.wait(60)
    (task.folder / f"stopped{rank}").touch()
    raise StoppedError("stopped by a signal; run the same command to go on.")


def names(folder: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


def test_workers_have_a_log_each_and_their_log_lines_show_the_device(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out.rank0.log").write_text("of another run\n")
    with caplog.at_level(logging.INFO, "virnucpro"):
        run_ranks(work, Task(tmp_path), TWO, tmp_path / "out.h5")
    assert names(tmp_path, "*") == ["out.rank0.log", "out.rank1.log", "rank0", "rank1"]
    first, second = ((tmp_path / f"out.rank{rank}.log").read_text() for rank in range(2))
    assert first.splitlines()[0].endswith(" virnucpro.test: rank 0 is at work")
    assert first.splitlines()[1:] == [f"printed {number}" for number in range(20)]
    assert second.endswith("virnucpro.test: rank 1 is at work\n")
    assert capfd.readouterr() == ("", "")
    assert sorted(f"{record.name}: {record.message}" for record in caplog.records) == [
        f"[cpu] virnucpro.test: rank {rank} is at work" for rank in range(2)
    ]


PRINTED = [f"printed {number}" for number in range(20)]


@pytest.mark.parametrize(
    ("end", "how", "last"),
    [
        ("killed", "was killed by SIGKILL (memory may have run out)", PRINTED[-10:]),
        ("exit", "ended with code 3", [*PRINTED[-9:], "last words of a library"]),
        ("quiet exit", "ended with code 0", PRINTED[-10:]),
        ("exception", "ended with code 1", ["ZeroDivisionError: a bug"]),
        ("crash", "was killed by SIGSEGV", []),
    ],
)
def test_worker_that_dies_is_reported_with_its_last_lines_and_the_other_finishes(
    tmp_path: Path, end: str, how: str, last: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(VirNucProError) as caught:
        run_ranks(work, Task(tmp_path, end), TWO, tmp_path / "out.h5")
    assert names(tmp_path, "rank*") == ["rank1"]
    sentence, *lines = str(caught.value).splitlines()
    assert sentence.startswith(f"the worker on cpu {how}; what is finished is")
    assert sentence.endswith("out.rank0.log says last:")
    assert len(lines) <= 10
    if end == "crash":
        assert any("test_workers.py" in line and "in work" in line for line in lines)
    else:
        assert [line.strip() for line in lines[-len(last) :]] == last
    # 75: tried again; 139: what a crash gives in one process too
    assert caught.value.exit_code == {"killed": 75, "crash": 139}.get(end, 1)
    assert f"[cpu] {caught.value}" in caplog.text, "said when it happens, not only at the end"


def test_worker_that_refuses_is_raised_as_it_is_and_the_other_finishes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^weights\.pt: is damaged; fetch the model again\.$"):
        run_ranks(work, Task(tmp_path, "refusal"), TWO, tmp_path / "out.h5")
    assert names(tmp_path, "rank*") == ["rank1"]
    assert "weights.pt: is damaged" in (tmp_path / "out.rank0.log").read_text()


def test_one_device_needs_no_process_and_no_log(tmp_path: Path) -> None:
    def here(task: Task, device: str, rank: int, world: int, stop: Event) -> None:
        raise InputError(f"{device} {rank} {world} {os.getpid()}")

    with pytest.raises(InputError, match=f"^cpu 0 1 {os.getpid()}$"):
        run_ranks(here, Task(tmp_path), ["cpu"], tmp_path / "out.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_signal_is_passed_on_to_all_workers(
    tmp_path: Path, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    def send() -> None:
        until(lambda: len(names(tmp_path, "ready*")) == 2)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(StoppedError) as caught:
        run_ranks(wait_for_stop, Task(tmp_path), TWO, tmp_path / "out.h5")
    sender.join()
    assert caught.value.exit_code == 75
    assert names(tmp_path, "stopped*") == ["stopped0", "stopped1"]
    (own,) = (record for record in caplog.records if not record.name.startswith("["))
    assert own.levelname == "WARNING"


@pytest.mark.parametrize("devices", [["cpu"], TWO])
def test_signal_after_the_last_batch_stops_as_well(devices: list[str], tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match="stopped by a signal"):
        run_ranks(done_as_a_signal_comes, Task(tmp_path), devices, tmp_path / "out.h5")


def test_workers_interrupted_while_they_start_print_no_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C goes to all processes of a terminal."""

    def send() -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        until(lambda: len(children.read_text().split()) >= 2)
        for child in (os.getpid(), *map(int, children.read_text().split())):
            os.kill(child, signal.SIGINT)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(StoppedError):
        run_ranks(wait_for_stop, Task(tmp_path), TWO, tmp_path / "out.h5")
    sender.join()
    assert "Traceback" not in capfd.readouterr().err


def test_workers_stop_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nfrom test_workers import *\n"
        "if __name__ == '__main__':\n"
        f"    run_ranks(wait_for_stop, Task(Path({str(tmp_path)!r})), TWO,"
        f" Path({str(tmp_path)!r}) / 'out.h5')\n"
    )
    (tmp_path / "parent.py").write_text(code)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")], env={**os.environ, "PYTHONPATH": path}
    )
    until(lambda: len(names(tmp_path, "ready*")) == 2)
    parent.kill()
    parent.wait()
    until(lambda: len(names(tmp_path, "stopped*")) == 2)


def kill_worker(parent: int) -> None:
    """Kill the first worker of a process with SIGKILL."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    workers = [
        pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(workers) == 2
    os.kill(int(workers[0]), signal.SIGKILL)


CUDA = ("cuda:0", "cuda:1" if torch.cuda.device_count() > 1 else "cuda:0")
"""Two GPUs, or two processes on one."""


@pytest.mark.parametrize(
    "devices",
    [
        ("cpu", "cpu"),
        pytest.param(
            CUDA,
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
    ids=",".join,
)
def test_embed_after_a_worker_died_a_rerun_does_only_what_is_left(
    devices: tuple[str, str], edge: Path, models_dir: Path, tmp_path: Path
) -> None:
    repeated_frames(edge, tmp_path, 12)

    def start(name: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "virnucpro_core.cli",
            "embed",
            "frames.parquet",
            "-o",
            name,
        ]
        command += ["--model", "tiny", "--models-dir", str(models_dir)]
        command += ["--devices", ",".join(devices)]
        # one sequence at a time, so that it lasts
        env = {**os.environ, "VIRNUCPRO_DISABLE_PACKING": "true"}
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=env)

    def kept() -> list[tuple[int, int]]:
        logs = [path.read_text() for path in tmp_path.glob("shard.rank*.log")]
        found = [re.search(r"(\d+) of (\d+) batches kept", log) for log in logs]
        return [(int(one[1]), int(one[2])) for one in found if one]

    first = start("shard.h5")
    until(lambda: len(kept()) == 2)
    kill_worker(first.pid)
    _, said = first.communicate()
    assert first.returncode == 75  # to be tried again
    assert re.search(rf"virnucpro: the worker on ({'|'.join(devices)}) was killed by SIGKILL", said)
    assert "Traceback" not in said

    second = start("shard.h5")
    _, said = second.communicate()
    assert second.returncode == 0, said
    assert sum(said.count(f"[{one}] virnucpro.embed: {one}: ") for one in set(devices)) >= 2
    (of_killed, all_of_killed), (of_other, all_of_other) = sorted(kept(), key=lambda n: n[0])
    assert of_killed < all_of_killed
    assert of_other == all_of_other

    unbroken = start("unbroken.h5")
    assert unbroken.wait() == 0
    shards = [list(EmbeddingFile(tmp_path / f"{n}.h5").parts()) for n in ("shard", "unbroken")]
    for (ids, values), (expected_ids, expected) in zip(*shards, strict=True):
        assert ids == expected_ids
        assert np.array_equal(values, expected)


def say_pid(folder: Path, device: str, rank: int, world: int, stop: Event) -> None:
    (folder / f"pid{rank}").write_text(str(os.getpid()))


def test_processes_that_stand_by_are_the_workers_and_those_left_over_are_ended(
    tmp_path: Path,
) -> None:
    with standby.standing_by("cpu,cpu,cpu", None):
        ready = {one.process.pid: one.process for one in standby._waiting}
        run_ranks(say_pid, tmp_path, TWO, tmp_path / "out.h5")
    used = {int((tmp_path / f"pid{rank}").read_text()) for rank in range(2)}
    assert len(ready) == 3
    assert used < ready.keys()
    (left,) = ready.keys() - used
    ready[left].join(60)
    assert ready[left].exitcode in (-signal.SIGKILL, 0)  # 0: it saw first that no order can come


@pytest.mark.parametrize(
    ("devices", "gpus", "visible", "count"),
    [
        ("cpu", None, "0,1", 1),
        ("cuda:0,cuda:1", None, "", 2),
        ("auto", None, "0,1,2", 3),
        ("auto", 2, "0,1,2", 2),
        ("cuda", 4, "GPU-1,GPU-2", 2),
        ("auto", None, "", 0),
    ],
)
def test_as_many_processes_stand_by_as_there_are_devices_to_use(
    devices: str, gpus: int | None, visible: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert standby._expected(devices, gpus) == count
