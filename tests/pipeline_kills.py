"""Kill runs of the pipeline, resume them, and compare with the unbroken one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from stages import results

ROOT = Path(__file__).parents[1]


def _tasks(folder: Path) -> list[int]:
    """Processes of the package in a pipeline's folder of work."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            ours = (folder / "work") in path.readlink().parents
            if ours and b"virnucpro" in (path.parent / "cmdline").read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


def kill_pipelines(folder: Path, kills: int, seed: int) -> Counter[str]:
    """Kill a pipeline's head, its group or a task so many times, resume it, and compare.

    Returns the kills, as `pipeline / signal / place`.
    """
    done: Counter[str] = Counter()
    rng = random.Random(seed)
    records = (ROOT / "assets/demo/phages.fasta").read_text().split(">")[1:4]
    command = [str(ROOT / "nextflow"), "run", str(ROOT / "main.nf"), "-profile", "test"]
    command += ["--input", "few.fa", "--shard_bp", "2000"]

    def start(place: Path, *words: str) -> subprocess.Popen[bytes]:
        with (place / "said").open("ab") as said:
            return subprocess.Popen(
                [*command, *words],
                cwd=place,
                env={**os.environ, "NXF_ANSI_LOG": "false"},
                stdout=said,
                stderr=said,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def fresh(number: int) -> Path:
        place = folder / f"pipeline{number}"
        place.mkdir()
        (place / "few.fa").write_text("".join(f">{record}" for record in records))
        return place

    def finish(place: Path, *words: str) -> dict[str, Any]:
        assert start(place, *words).wait(600) == 0, (place / "said").read_text()
        found = results(place / "results")
        return {name: of for name, of in found.items() if not name.startswith("pipeline_info")}

    begin = time.monotonic()
    unbroken = finish(fresh(0))
    seconds = time.monotonic() - begin
    print(f"pipeline: {seconds:.1f} s unbroken", file=sys.stderr)
    assert "few/contigs.tsv" in unbroken
    for number in range(1, kills + 1):
        place, whom = fresh(number), ("head", "group", "task")[number % 3]
        head = start(place)
        time.sleep(rng.uniform(0.3, 0.9) * seconds)
        which = rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        while whom == "task" and not (at := _tasks(place)) and head.poll() is None:
            time.sleep(0.05)
        if head.poll() is not None:
            continue
        match whom:
            case "head":
                head.send_signal(which)
            case "group":
                os.killpg(head.pid, which)
            case "task":
                with suppress(ProcessLookupError):
                    os.kill(rng.choice(at), which)
        code = head.wait(600)
        if whom == "task":  # it is tried again
            assert code == 0, (place / "said").read_text()
        done[f"pipeline / {which.name} / {whom}"] += 1
        assert finish(place, "-resume") == unbroken, "the pipeline's results are not as unbroken"
    return done
