"""The GPU monitor, with NVML bindings that a test makes, and on a GPU where there is one."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from virnucpro_core.embedding import monitor
from virnucpro_core.embedding.engine import embed
from virnucpro_core.embedding.hdf5 import open_h5
from virnucpro_core.embedding.monitor import watched
from virnucpro_core.embedding.series import DIGITS, POINTS, Record, Series, in_words, joined
from virnucpro_core.embedding.shards import USED_BYTES, EmbeddingFile, seal
from virnucpro_core.models.store import Model

NVML = """
from types import SimpleNamespace

NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0
pids, reasons, refused, asked = [], 0, set(), []

class NVMLError(Exception):
    pass

def answer(name, value):
    def function(*arguments):
        asked.append((name, *arguments))
        if name in refused:
            raise NVMLError("Not Supported")
        return value()
    return function

def said(**values):
    return lambda: SimpleNamespace(**values)

nvmlInit = answer("init", said())
nvmlDeviceGetHandleByUUID = answer("handle", lambda: "handle")
nvmlDeviceGetUtilizationRates = answer("busy", said(gpu=99))
nvmlDeviceGetMemoryInfo = answer("memory", said(used=30 << 30, total=80 << 30))
nvmlDeviceGetPowerUsage = answer("power", lambda: 680_400)
nvmlDeviceGetEnforcedPowerLimit = answer("limit", lambda: 700_000)
nvmlDeviceGetClockInfo = answer("clock", lambda: 1755)
nvmlDeviceGetTemperature = answer("temperature", lambda: 64)
nvmlDeviceGetCurrentClocksThrottleReasons = answer("reasons", lambda: reasons)
nvmlDeviceGetComputeRunningProcesses = answer(
    "processes", lambda: [SimpleNamespace(pid=pid) for pid in pids]
)
"""


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `import pynvml` gives: one GPU at work, of which this process is the only user."""
    (tmp_path / "pynvml.py").write_text(NVML)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    made = importlib.import_module("pynvml")
    made.pids.append(os.getpid())
    monkeypatch.setattr(monitor, "PERIOD", 0.02)
    monkeypatch.setattr(monitor, "gpu_of", lambda device: "GPU-1")
    return made


def seen_for(seconds: float) -> Record:
    with watched("cuda:0") as watch:
        time.sleep(seconds)
    (seen,) = watch.seen
    return seen


def test_monitor_keeps_series_means_and_limits(nvml: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "virnucpro"), watched("cuda:0") as watch:
        time.sleep(0.5)
        assert watch.now == "GPU 0.99 680 W"
    (seen,) = watch.seen
    assert ("handle", "GPU-1") in nvml.asked
    assert seen["gpu"] == "GPU-1"
    assert abs(seen["begun"] - time.time()) < 60
    assert 2 <= seen["samples"] == len(seen["seconds"]) <= 26
    assert seen["seconds"] == sorted(seen["seconds"])
    expected = {
        "busy": 0.99,
        "memory_bytes": 30 << 30,
        "power_w": 680,
        "clock_mhz": 1755,
        "celsius": 64,
    }
    assert seen["mean"] == expected
    assert {name: set(seen[name]) for name in expected} == {n: {v} for n, v in expected.items()}
    assert (seen["limit_w"], seen["limit_bytes"]) == (700, 80 << 30)
    assert (seen["others"], seen["held_back"]) == (0, {"power": 0, "heat": 0, "supply": 0})
    assert json.loads(json.dumps(seen)) == seen
    assert caplog.messages == ["cuda:0: GPU busy 0.99, 680 W of 700, 1,755 MHz, 64 °C"]


def test_monitor_of_work_shorter_than_its_period_has_a_series_all_the_same(
    nvml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "PERIOD", 60.0)
    start = time.monotonic()
    assert seen_for(0)["samples"] == 2
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("reasons", "said", "level"),
    [
        (0x1 | 0x4, "at its power limit 100% of the time", "INFO"),
        (0x8 | 0x40, "too hot for its full clock 100% of the time", "WARNING"),
        (0x20, "too hot for its full clock 100% of the time", "WARNING"),
        (0x80, "slowed by its power supply 100% of the time", "WARNING"),
        (0x2 | 0x10, "64 °C", "INFO"),
    ],
)
def test_gpu_that_is_held_back_is_said_to_be(
    reasons: int, said: str, level: str, nvml: Any, caplog: pytest.LogCaptureFixture
) -> None:
    nvml.reasons = reasons
    with caplog.at_level(logging.INFO, "virnucpro"):
        seen_for(0.1)
    assert caplog.messages[-1].endswith(said)
    assert caplog.records[-1].levelname == level


@pytest.mark.parametrize(
    ("pids", "others"),
    [
        ([os.getpid()], 0),
        ([os.getpid(), 1], 1),
        ([2**22 + 7], 0),  # in a container the numbers are the host's
        ([2**22 + 7, 2**22 + 8, 2**22 + 9], 2),
        ([], 0),
    ],
)
def test_another_program_on_the_gpu_is_said_once(
    pids: list[int], others: int, nvml: Any, caplog: pytest.LogCaptureFixture
) -> None:
    nvml.pids[:] = pids
    with caplog.at_level(logging.WARNING, "virnucpro"):
        assert seen_for(0.5)["others"] == others
    assert len(caplog.messages) == bool(others)
    assert all("another program computes on this GPU" in message for message in caplog.messages)


def test_monitor_leaves_out_what_the_driver_refuses(
    nvml: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a part of a GPU (MIG) there is no utilisation."""
    nvml.refused.update({"busy", "limit", "processes"})
    with caplog.at_level(logging.DEBUG, "virnucpro"):
        seen = seen_for(0.2)
    assert "busy" not in seen
    assert "limit_w" not in seen
    assert seen["others"] == 0
    assert in_words(seen) == "GPU 680 W, 1,755 MHz, 64 °C"
    refusals = [message for message in caplog.messages if "Not Supported" in message]
    assert refusals == [
        f"cuda:0: NVML has no {what}: Not Supported" for what in ("limit_w", "busy", "others")
    ]


def test_monitor_of_a_driver_that_tells_nothing_keeps_nothing(nvml: Any) -> None:
    nvml.refused.update({"busy", "memory", "power", "clock", "temperature", "reasons"})
    with watched("cuda:0") as watch:
        time.sleep(0.1)
    assert (watch.now, watch.seen) == ("", [])


@pytest.mark.parametrize("what", ["init", "handle"])
def test_monitor_where_the_driver_refuses_all_is_a_sentence_at_debug_level(
    what: str, nvml: Any, caplog: pytest.LogCaptureFixture
) -> None:
    nvml.refused.add(what)
    with caplog.at_level(logging.DEBUG, "virnucpro"), watched("cuda:0") as watch:
        time.sleep(0.1)
    assert (watch.now, watch.seen) == ("", [])
    assert caplog.messages == ["cuda:0: no GPU monitor, since NVML says: Not Supported"]
    assert caplog.records[0].levelname == "DEBUG"


def test_monitor_without_the_package_is_a_sentence_at_debug_level(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(monitor, "gpu_of", lambda device: "GPU-1")
    with caplog.at_level(logging.DEBUG, "virnucpro"), watched("cuda:0") as watch:
        pass
    assert watch.seen == []
    assert caplog.messages == ["cuda:0: no GPU monitor, since nvidia-ml-py is not installed"]


def test_monitor_with_the_true_package_without_such_a_gpu_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(monitor, "gpu_of", lambda device: "GPU-that-is-not-there")
    with caplog.at_level(logging.DEBUG, "virnucpro"), watched("cuda:0") as watch:
        pass
    assert watch.seen == []
    (message,) = caplog.messages
    assert message.startswith("cuda:0: no GPU monitor, since NVML says: ")


def test_cpu_is_not_monitored() -> None:
    assert monitor.gpu_of("cpu") is None
    with watched("cpu") as watch:
        pass
    assert (watch.now, watch.seen) == ("", [])


def sampled(samples: int, begun: float = 0.0, busy: float | None = None) -> Record:
    series = Series()
    for number in range(samples):
        use = number / samples if busy is None else busy
        series.add({**dict.fromkeys(DIGITS, 1e9), "seconds": float(number), "busy": use})
    about = {"gpu": "GPU-1", "begun": begun, "held_back": {"heat": 0.5}, "others": 0}
    return {**about, **series.record()}


@pytest.mark.parametrize("samples", [1, POINTS - 1, POINTS, POINTS + 1, 10_001])
def test_series_of_any_number_of_samples_is_bounded_and_keeps_its_mean(samples: int) -> None:
    record = sampled(samples)
    assert min(samples, POINTS / 2) <= len(record["busy"]) <= POINTS
    assert record["samples"] == samples
    assert record["mean"]["busy"] == round((samples - 1) / samples / 2, 2)
    assert record["seconds"] == sorted(record["seconds"])
    assert record["seconds"][-1] == pytest.approx(samples, rel=0.02, abs=1)


def test_series_of_tasks_on_one_gpu_are_joined_in_time() -> None:
    tasks = [sampled(1000, begun=5000.0, busy=1.0), sampled(3000, begun=1000.0, busy=0.6)]
    (record,) = joined(tasks)
    assert record["samples"] == 4000
    assert record["begun"] == 1000.0
    assert record["mean"]["busy"] == pytest.approx(0.7, abs=0.02)
    assert len(record["busy"]) <= POINTS
    assert record["seconds"] == sorted(record["seconds"])
    assert record["seconds"][-1] > 4900
    assert (record["busy"][0], record["busy"][-1]) == (0.6, 1.0)
    assert len(joined([*tasks, {**tasks[0], "gpu": "GPU-2"}])) == 2


def test_series_go_with_the_shard_into_the_summary(
    nvml: Any, edge: Path, models_dir: Path, tmp_path: Path, ask: Callable[..., str]
) -> None:
    options = ["--model", "tiny", "--models-dir", models_dir]
    out = tmp_path / "out"
    said = ask("-v", "predict", edge, "-o", out, *options, "--device", "cpu")
    assert "virnucpro.embed: cpu: GPU busy 0.99, 680 W of 700, 1,755 MHz, 64 °C\n" in said
    assert "ms each" in said
    (on,) = json.loads((out / "summary.json").read_text())["embedded_on"]
    (gpu,) = on["gpus"]
    assert gpu["gpu"] == "GPU-1"
    assert gpu["samples"] == len(gpu["power_w"])
    assert gpu["mean"]["power_w"] == 680


def test_series_of_many_gpus_fit_into_the_shard(
    nvml: Any, edge_frames: Path, tiny: Model, tmp_path: Path
) -> None:
    path = tmp_path / "s.h5"
    embed(edge_frames, path, tiny, devices="cpu")
    (on,) = EmbeddingFile(path).used()
    with open_h5(path) as file:
        sums = file["checksum"][()]
    for gpus, points in ((1, POINTS), (4, POINTS // 4), (900, 0)):
        series = [{**sampled(POINTS - 1), "gpu": f"GPU-{gpu}"} for gpu in range(gpus)]
        seal(path, sums, [{**on, "gpus": series}])
        (again,) = EmbeddingFile(path).used()
        kept = [len(gpu["busy"]) for gpu in again["gpus"]]
        assert len(json.dumps([again])) <= USED_BYTES
        assert kept == [kept[0]] * gpus if points else kept == []
        assert points == 0 or kept[0] >= points // 2


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
def test_monitor_of_a_true_gpu_sees_it_at_work(caplog: pytest.LogCaptureFixture) -> None:
    square = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    with caplog.at_level(logging.DEBUG, "virnucpro"), watched("cuda:0") as watch:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            square = (square @ square).clamp(-1, 1)
            torch.cuda.synchronize()
    (seen,) = watch.seen
    print(caplog.messages)
    assert len(seen["power_w"]) > 1
    assert all(power > 0 for power in seen["power_w"])
    assert all(0 <= busy <= 1 for busy in seen["busy"])
    assert seen["mean"]["busy"] > 0.5
    assert 0 < seen["mean"]["memory_bytes"] <= seen["limit_bytes"]
    assert seen["others"] == 0
    (cost,) = (float(m.split()[-3]) for m in caplog.messages if m.endswith("ms each"))
    assert cost < 50, "milliseconds of each second"


@pytest.mark.gpu
@needs_gpu
def test_series_of_a_true_gpu_are_in_the_summary(
    edge: Path, tmp_path: Path, ask: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "PERIOD", 0.05)
    said = ask("predict", edge, "-o", tmp_path / "out", "--model", "mini", "--device", "cuda:0")
    assert "virnucpro.embed: cuda:0: GPU busy " in said
    (on,) = json.loads((tmp_path / "out" / "summary.json").read_text())["embedded_on"]
    (gpu,) = on["gpus"]
    assert len(gpu["power_w"]) == gpu["samples"] > 1
    assert min(gpu["power_w"]) > 0
    assert 0 <= min(gpu["busy"]) <= max(gpu["busy"]) <= 1
