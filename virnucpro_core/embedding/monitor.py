"""What a GPU does while it embeds, as NVML tells it: sampled on a thread of its own."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from virnucpro_core.embedding.devices import identity
from virnucpro_core.embedding.series import Record, Series, in_words
from virnucpro_core.errors import need_room

logger = logging.getLogger("virnucpro.embed")

PERIOD = 1.0
"""Seconds between two samples."""

OTHERS_EVERY = 10
"""Samples between two looks at who else is on the GPU."""

Ask = Callable[[Any, Any], float]
"""Of the library and the handle of a GPU."""

QUANTITIES: dict[str, Ask] = {
    "busy": lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    "memory_bytes": lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    "power_w": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    "clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "celsius": lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    "reasons": lambda nvml, gpu: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu),
}

LIMITS: dict[str, Ask] = {
    "limit_w": lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000,
    "limit_bytes": lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total,
}

REASONS = {"power": 0x04, "heat": 0x20 | 0x40, "supply": 0x80}
"""What lowers a clock, as bits of what NVML says: the power limit, heat, the power supply."""


def gpu_of(device: str) -> str | None:
    """A device's name in NVML, whatever number CUDA_VISIBLE_DEVICES gives it; None of a CPU."""
    if device == "cpu":
        return None
    name = identity(torch.device(device))
    return name if name.startswith(("GPU-", "MIG-")) else f"GPU-{name}"


class Monitor(threading.Thread):
    """Samples a GPU from its start until it is closed. now: the last sample in a few words; seen:
    one record, once the work is over. Both are empty of a CPU, and where nothing can be known.

    Only this thread asks NVML, so a slow driver holds nothing up. What cannot be asked, all of it
    without NVML, is left out, which is said at debug level.
    """

    def __init__(self, device: str, gpu: str | None) -> None:
        super().__init__(name="monitor", daemon=True)
        self.now = ""
        self.seen: list[Record] = []
        self._device, self._gpu = device, gpu
        self._series = Series()
        self._held_back: Counter[str] = Counter()
        self._about: dict[str, float] = {}
        self._begun, self._spent, self._others = time.time(), 0.0, 0
        self._ended = threading.Event()

    def run(self) -> None:
        try:
            import pynvml as nvml
        except ImportError:
            logger.debug("%s: no GPU monitor, since nvidia-ml-py is not installed", self._device)
            return
        try:
            nvml.nvmlInit()
            gpu = nvml.nvmlDeviceGetHandleByUUID(self._gpu)
        except (nvml.NVMLError, OSError) as error:
            logger.debug("%s: no GPU monitor, since NVML says: %s", self._device, error)
            return

        def answers(asked: dict[str, Ask]) -> dict[str, float]:
            found = {}
            for name, ask in list(asked.items()):
                try:
                    found[name] = ask(nvml, gpu)
                except (nvml.NVMLError, AttributeError) as error:  # an old driver; a part of a GPU
                    logger.debug("%s: NVML has no %s: %s", self._device, name, error)
                    del asked[name]
            return found

        self._about = answers(dict(LIMITS))
        asked = dict(QUANTITIES)
        others: dict[str, Ask] = {"others": _others}
        while asked and (not self._ended.wait(PERIOD) or self._series.samples < 2):
            start = time.perf_counter()
            self._take(answers(asked))
            if self._series.samples % OTHERS_EVERY == 1:
                self._meet(int(answers(others).get("others", 0)))
            self._spent += time.perf_counter() - start

    def _take(self, sample: dict[str, float]) -> None:
        reasons = int(sample.pop("reasons", 0))
        self._held_back.update(name for name, bits in REASONS.items() if reasons & bits)
        self._series.add({"seconds": time.time() - self._begun, **sample})
        words = {"busy": "{:.2f}", "power_w": "{:.0f} W"}
        said = [text.format(sample[name]) for name, text in words.items() if name in sample]
        self.now = " ".join(["GPU", *said]) if said else ""

    def _meet(self, others: int) -> None:
        if others and not self._others:
            logger.warning(
                "%s: another program computes on this GPU too, which slows both; `nvidia-smi` "
                "says which",
                self._device,
            )
        self._others = max(self._others, others)

    def close(self) -> None:
        """End the thread, and keep what it has seen."""
        self._ended.set()
        self.join(2.0)  # a driver that hangs is left to itself
        samples = self._series.samples
        series = self._series.record() if samples and not self.is_alive() else {}
        if not series.get("mean"):
            return
        logger.debug(
            "%s: %d samples, %.1f ms each", self._device, samples, 1000 * self._spent / samples
        )
        seen = {
            "gpu": self._gpu,
            "begun": round(self._begun, 1),
            **{name: round(value) for name, value in self._about.items()},
            "held_back": {name: round(self._held_back[name] / samples, 3) for name in REASONS},
            "others": self._others,
            **series,
        }
        self.seen.append(seen)
        harmful = seen["held_back"]["heat"] or seen["held_back"]["supply"]
        logger.log(
            logging.WARNING if harmful else logging.INFO, "%s: %s", self._device, in_words(seen)
        )


@contextmanager
def watched(device: str) -> Iterator[Monitor]:
    """Monitor a device, if it is a GPU, and say at the end how it was used."""
    gpu = gpu_of(device)
    monitor = Monitor(device, gpu)
    if gpu is None:
        yield monitor
        return
    need_room()
    monitor.start()
    try:
        yield monitor
    finally:
        monitor.close()


def _others(nvml: Any, gpu: Any) -> int:
    """How many processes compute on a GPU, less this one and those that this run has started.

    In a container they have other numbers than here: then one of them is this one.
    """
    found = {process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(gpu)}
    if os.getpid() not in found:
        return max(0, len(found) - 1)
    parent = multiprocessing.parent_process()
    family = {os.getpid()} | ({parent.pid} if parent else set())
    return sum(not parent or _parent(pid) != parent.pid for pid in found - family)


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended, or is of another user
        return None
