"""How long a run spends in its stages, which run side by side on threads."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def process_seconds() -> float:
    """Seconds since this process was started, imports and all (Linux, proc(5): starttime)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


class Stages:
    """Seconds of a run by stage. An instant in which several threads are in stages is shared out
    among them, so that the stages, and the rest in which none of them ran, add up to the run.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._threads: dict[str, float] = {}  # the same, added up over threads
        self._active: Counter[str] = Counter()
        self._begun = self._last = time.perf_counter()
        self._lock = threading.Lock()

    def _step(self, stage: str, change: int) -> None:
        with self._lock:
            now = time.perf_counter()
            working = self._active.total()
            for active, threads in self._active.items():
                spent = (now - self._last) * threads
                self._threads[active] = self._threads.get(active, 0.0) + spent
                if threads:
                    self.seconds[active] = self.seconds.get(active, 0.0) + spent / working
            self._last = now
            self._active[stage] += change

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time within to a stage."""
        self._step(stage, 1)
        try:
            yield
        finally:
            self._step(stage, -1)

    @property
    def whole(self) -> float:
        """Seconds of the run, as far as its last stage."""
        return self._last - self._begun

    def __str__(self) -> str:
        said = []
        for stage, spent in self.seconds.items():
            threads = self._threads[stage]
            beside = f" ({threads:.1f} s of threads side by side)" if threads > 1.1 * spent else ""
            said.append(f"{stage} {spent:.1f} s{beside}")
        rest = max(0.0, self.whole - sum(self.seconds.values()))
        return f"{self.whole:.1f} s: {', '.join(said)}, none of these {rest:.1f} s"
