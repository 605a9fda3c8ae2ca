"""A hundred kills of `embed`, at any moment, of any kind: then old or new, nothing between."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_embedding import read
from tiny import repeated_frames

from virnucpro_core.embedding.shards import EmbeddingFile

KILLS = 100
FLUSHING = """
import sys
from virnucpro_core.embedding import journal
journal.FLUSH_SECONDS = float(sys.argv.pop(1))
from virnucpro_core.cli import main
main()
"""


class Killed:
    """`embed` of one table on some devices, killed and started again until it is done."""

    def __init__(self, frames: Path, models_dir: Path, output: Path, devices: str) -> None:
        self.output = output
        # spawned workers keep the usual interval
        words = ["0.05" if devices == "cpu" else "2", "embed", str(frames), "-o", str(output)]
        words += ["--model", "tiny", "--models-dir", str(models_dir), "--device", devices]
        self._command = [sys.executable, "-c", FLUSHING, *words]
        self.kept = 0

    def start(self) -> subprocess.Popen[str]:
        env = {**os.environ, "VIRNUCPRO_DISABLE_PACKING": "true", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            self._command, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
        )

    def kill(self, process: subprocess.Popen[str], rng: random.Random) -> str:
        """Kill the parent, a worker or all; what was done, as text."""
        number = rng.choice([signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT])
        whom = rng.choice(["parent", "worker", "group"])
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
        if whom == "worker" and workers:
            os.kill(rng.choice(workers), number)
        elif whom == "group":
            os.killpg(process.pid, number)
        else:
            whom = "parent"
            os.kill(process.pid, number)
        return f"{number.name} of the {whom}"

    def check(self) -> None:
        """What is there after a kill is whole, or is absent."""
        if self.output.exists():
            EmbeddingFile(self.output)

    def follow(self, said: str) -> None:
        """Rows that were kept once stay kept."""
        for kept in re.findall(r"(\d+) of \d+ batches kept", said):
            if len(said.split("batches kept")) == 2:  # one worker
                assert int(kept) >= self.kept, said
                self.kept = int(kept)
        assert "again" not in said.replace("run the same command again", ""), said


@pytest.mark.slow
def test_embed_killed_a_hundred_times_gives_the_unbroken_runs_rows(
    edge: Path, models_dir: Path, tmp_path: Path
) -> None:
    frames = repeated_frames(edge, tmp_path, 12)
    unbroken, seconds = {}, {}
    for devices in ("cpu", "cpu,cpu"):
        run = Killed(frames, models_dir, tmp_path / "unbroken.h5", devices)
        start = time.monotonic()
        assert run.start().wait() == 0
        seconds[devices] = time.monotonic() - start
        unbroken[devices] = read(run.output)
        run.output.unlink()

    rng = random.Random(12)
    kills: Counter[str] = Counter()
    finished = 0
    while sum(kills.values()) < KILLS:
        devices = rng.choice(list(unbroken))
        run = Killed(frames, models_dir, tmp_path / f"{finished}.h5", devices)
        while True:
            process = run.start()
            try:
                _, said = process.communicate(timeout=rng.uniform(0, 1.2 * seconds[devices]))
            except subprocess.TimeoutExpired:
                kills[run.kill(process, rng)] += 1
                _, said = process.communicate(timeout=120)
                starting = "virnucpro" not in said  # Python itself, whose end is its own
                assert starting or process.returncode in (0, 75, *(-n for n in (9, 15, 2))), said
                assert "Traceback" not in said or said.endswith("KeyboardInterrupt\n"), said
            run.follow(said)
            run.check()
            if process.returncode == 0:
                break
        names, values = read(run.output)
        assert names == unbroken[devices][0]
        assert np.array_equal(values, unbroken[devices][1])
        finished += 1
    left = [path.name for path in tmp_path.iterdir() if ".partial" in path.name]
    assert not left
    print(f"{sum(kills.values())} kills, {finished} results, all as unbroken: {dict(kills)}")
