"""What this machine can do and what is missing, told without a traceback."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_options import Run, sees

from virnucpro_core import host
from virnucpro_core.lab import doctor
from virnucpro_core.lab.doctor import MISSING, NOTE, OK, examine
from virnucpro_core.models.store import SHIPPED


def states(folder: Path, models_dir: Path | None = None) -> dict[str, list[tuple[str, str]]]:
    """State and text of the findings, by what they are about."""
    found: dict[str, list[tuple[str, str]]] = {}
    for state, what, text in examine(models_dir, folder):
        found.setdefault(what, []).append((state, text))
    return found


@sees("doctor", "--models-dir", "--output")
def test_doctor_has_a_line_for_each_thing(
    ask: Callable[..., str], models_dir: Path, tmp_path: Path
) -> None:
    said = ask("doctor", "--models-dir", models_dir, "--output", tmp_path / "no" / "out")
    lines = said.splitlines()
    assert all(line.split()[0] in (OK, NOTE) for line in lines)
    words = ("program", "libraries", "GPU", "kernels", "processor", "memory", "limits", "output")
    for word in (*words, "models", "pipeline", "locale"):
        assert any(line.split()[1] == word for line in lines), word
    assert "tiny: windows of 300" in said
    assert f"free in {tmp_path}" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_sentence_says_why(tmp_path: Path) -> None:
    [(state, text)] = states(tmp_path)["GPU"]
    assert state == NOTE
    assert text.startswith("none can be used, so the CPU does the work: ")
    assert text.count("driver") == 1


def test_output_that_cannot_be_written_is_missing_and_exit_code_1(run: Run) -> None:
    code, out, err = run("doctor", "--output", "/proc/none")
    assert code == 1
    assert "missing  output      /proc: cannot be written" in out
    assert err.endswith("predict cannot run here: see output.\n")


def test_damaged_model_is_told_and_mini_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(SHIPPED / "mini", tmp_path / "shipped" / "mini")
    shutil.copytree(SHIPPED / "mini", tmp_path / "models" / "other")
    about = json.loads((tmp_path / "models/other/model.json").read_text())
    (tmp_path / "models/other/model.json").write_text(json.dumps({**about, "name": "other"}))
    for folder in ("shipped/mini", "models/other"):
        with (tmp_path / folder / "classifier.safetensors").open("ab") as file:
            file.write(b"x")
    monkeypatch.setattr("virnucpro_core.models.store.SHIPPED", tmp_path / "shipped")
    found = states(tmp_path, tmp_path / "models")["models"]
    assert [state for state, _ in found] == [MISSING, NOTE]
    assert all("sha256" in text for _, text in found)
    (tmp_path / "models/other/model.json").write_text("[]")
    found = states(tmp_path, tmp_path / "models")["models"]
    assert "holds no JSON object" in found[0][1]


def test_whatever_breaks_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("it is\nbroken")

    monkeypatch.setattr(doctor, "import_module", broken)
    monkeypatch.setattr(torch.cuda, "is_available", broken)
    monkeypatch.setattr("os.getloadavg", broken)
    monkeypatch.setattr(doctor, "memory", broken)
    monkeypatch.setattr("shutil.disk_usage", broken)
    monkeypatch.setattr("shutil.which", broken)
    found = states(tmp_path)
    assert len(found["libraries"]) == 1 + len(doctor.LIBRARIES)
    assert {state for state, _ in found["libraries"]} == {MISSING, OK}
    for what in ("GPU", "kernels", "processor", "memory", "output", "pipeline"):
        assert found[what] == [(NOTE, "could not be looked at: RuntimeError: it is")]


def test_little_of_anything_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limit(kind: int) -> tuple[int, int]:
        return {resource.RLIMIT_NOFILE: (64, 64)}.get(kind, (int(1e9), int(1e9)))

    def flock(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("resource.getrlimit", limit)
    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr("locale.getencoding", lambda: "ANSI_X3.4-1968")
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr(doctor, "cpu_quota", lambda: 0.5)
    monkeypatch.setattr(host, "cpu_quota", lambda: 0.5)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(doctor, "free_disk", lambda _: 1e6)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = states(tmp_path)
    notes = {text for lines in found.values() for state, text in lines if state == NOTE}
    for part in (
        "64 open files; raise it: ulimit -n 256",
        "ulimit -v is 1.0 GB",
        "1.0 GB for this process; 2 GB is the least",
        "has no locks (Operation not supported)",
        "1.0 MB free in",
        "allows 0.5, so 1 thread(s) compute",
        "/dev/shm cannot be written",
        "no java on PATH",
        "no nextflow on PATH",
        "export LC_ALL=C.UTF-8",
    ):
        assert any(part in text for text in notes), part
    assert not any(state == MISSING for lines in found.values() for state, _ in lines)


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is free, the second another run's, the third too old for this torch."""

    def ones(*_: object, device: torch.device, **__: object) -> torch.Tensor:
        if device.index == 2:
            raise RuntimeError("CUDA error: no kernel image is available\nmore")
        return torch.eye(16)

    properties = SimpleNamespace(name="NVIDIA H100", major=9, minor=0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: properties)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (int(70e9), int(80e9)))
    monkeypatch.setattr("torch.ones", ones)
    monkeypatch.setattr(
        "virnucpro_core.embedding.devices.is_leased", lambda device: device.index == 1
    )


@pytest.mark.usefixtures("three_gpus")
def test_gpus_are_told_with_what_they_can_do(tmp_path: Path) -> None:
    found = states(tmp_path)["GPU"]
    assert [state for state, _ in found] == [OK, NOTE, MISSING, OK]
    about = "NVIDIA H100, compute capability 9.0, 70 GB of 80 GB free; fp16, bf16, fp8"
    assert found[0][1] == f"cuda:0 {about}"
    assert found[1][1] == f"cuda:1 {about}; another run holds it"
    assert found[2][1].endswith("cannot compute: CUDA error: no kernel image is available")


def test_limits_of_a_control_group_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_CGROUP", tmp_path)
    assert host.cpu_quota() is None
    whole = host.memory()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert (host.memory(), host.cpu_quota()) == (whole, None)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert (host.memory(), host.cpu_quota()) == (1_000_000, 1.5)
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert host.cpu_quota() is None
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("200000\n")
    assert host.cpu_quota() == 2


@pytest.mark.parametrize(
    ("count", "words"), [(9.13e9, "9.1 GB"), (2.5e12, "2.5 TB"), (5e4, "50 kB"), (1.2e7, "12 MB")]
)
def test_bytes_in_words(count: float, words: str) -> None:
    assert host.in_bytes(count) == words
