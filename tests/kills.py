"""Kill stages at any moment, in any way, start them again, and compare with the unbroken run.

    python tests/kills.py [--kills 200] [--pipelines 6] [--seed 0] [-o kills.json] [STAGE...]

An episode is a stage in a folder, empty or with older results in it. It is started and killed one
to four times, and then left to its end. After each kill every file that a reader sees is the old
one or the new one; at the end all are those of an unbroken run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline_kills import kill_pipelines
from stages import UNPACKED, Inputs, old_or_new, results
from tiny import write_tiny_model

from virnucpro_core.embedding.journal import Finished
from virnucpro_core.embedding.shards import EmbeddingFile
from virnucpro_core.models.store import Model
from virnucpro_core.parquet import frame_meta

HERE = Path(__file__).parent
EDGE = HERE / "data/original/edge.fa"
TWICE = {
    "embed, two workers": "embed TABLE -o OUT/s.h5 MODEL --device cpu,cpu FORCE",
    "predict, two workers": "predict FASTA -o OUT MODEL --device cpu,cpu FORCE",
}
STAGES = ("predict", "embed", *TWICE, "merge", "merge, copied", "classify", "report")
STAGES += ("models import", "split", "translate")
NUMBERS = (*[signal.SIGKILL] * 3, signal.SIGTERM, signal.SIGTERM, signal.SIGINT)
NOTICE = 30
"""Seconds from SIGTERM to the end that a scheduler gives."""
ORPHAN = 60
"""Seconds that a worker may live on without its parent."""


@dataclass
class Summary:
    """What was done, and what came of it; fields are those of the JSON."""

    kills: Counter[str] = field(default_factory=Counter)
    """By stage, signal and place."""
    moments: Counter[str] = field(default_factory=Counter)
    """Whether Python was still starting, or the command at work."""
    ends: Counter[str] = field(default_factory=Counter)
    """Exit codes by signal, of what was killed as a whole or by its parent."""
    results: Counter[str] = field(default_factory=Counter)
    """By stage: compared with the unbroken run's, all the same."""
    frames: int = 0
    """Of all results that were killed while they were embedded."""
    twice: int = 0
    """Frames embedded again."""
    lost: list[int] = field(default_factory=list)
    """Of each kill that came while frames were embedded, in frames."""
    intervals: list[float] = field(default_factory=list)
    """The same over the frames of a checkpoint interval."""

    def add(self, kills: Counter[str]) -> None:
        """Kills of another kind, each of which ended in an unbroken run's results."""
        self.kills += kills
        self.results += Counter(key.split(" / ")[0] for key in kills.elements())

    def record(self) -> dict[str, Any]:
        places = ("stage", "signal", "place")
        by = {
            place: dict(Counter(key.split(" / ")[n] for key in self.kills.elements()))
            for n, place in enumerate(places)
        }
        return {
            "kills": self.kills.total(),
            "kills_by": by,
            "moments": dict(self.moments),
            "exit_codes": dict(sorted(self.ends.items())),
            "results": dict(self.results),
            "differences": 0,  # the first one ends the run
            "embedded": {
                "frames": self.frames,
                "again": self.twice,
                "kills": len(self.lost),
                "kills_that_cost_nothing": self.lost.count(0),
                "most_frames_lost": max(self.lost, default=0),
                "most_intervals_lost": round(max(self.intervals, default=0.0), 2),
            },
        }


def at_work(group: int) -> list[int]:
    """Processes of a process group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = path.read_text().rpartition(") ")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX" and int(of) == group:
            found.append(int(path.parent.name))
    return found


class Run:
    """One start of a command, in a process group of its own."""

    def __init__(self, words: list[str], notes: Path, flush: float) -> None:
        notes.unlink(missing_ok=True)
        self._notes, self._said = notes, notes.with_suffix(".said")
        env = {
            **os.environ,
            "NOTES": str(notes),
            "FLUSH_SECONDS": str(flush),
            **UNPACKED,
            "OMP_NUM_THREADS": "1",
        }
        with self._said.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "noted.py"), *words],
                stdout=said,
                stderr=said,
                env=env,
                start_new_session=True,
                # a shell has a job in the background ignore it
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def lasts(self, seconds: float) -> bool:
        """Whether it is still at work after so many seconds."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def kill(self, number: signal.Signals, place: str) -> str:
        """Send a signal; to whom, in the end."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        try:
            workers = [int(pid) for pid in children.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            workers = []
        if place == "worker" and workers:
            os.kill(random.choice(workers), number)
        elif place == "group":
            os.killpg(self.process.pid, number)
        else:
            place = "parent"
            self.process.send_signal(number)
        return place

    def end(self, seconds: float) -> int:
        """Its exit code, after so many seconds at most; nobody of it is left."""
        # counted, not by the clock: where the machine stands still, so does this
        for _ in range(int(20 * seconds)):
            if not self.lasts(0.05):
                break
        assert self.process.returncode is not None, f"still at work: {self.said}"
        for _ in range(int(20 * ORPHAN)):
            if not at_work(self.process.pid):
                return self.process.returncode
            time.sleep(0.05)
        orphans = [Path(f"/proc/{pid}/cmdline").read_text() for pid in at_work(self.process.pid)]
        raise AssertionError(f"orphans are at work: {orphans}, {self.said}")

    @property
    def said(self) -> str:
        return self._said.read_text()

    def notes(self) -> list[tuple[str, str, int]]:
        """What its processes noted: who, what, how many."""
        if not self._notes.exists():
            return []
        words = (line.split() for line in self._notes.read_text().splitlines())
        return [(who, what, int(number)) for who, what, number in words]

    def embedded(self) -> tuple[int, int, int]:
        """Frames: embedded, of them not surely kept, and in a checkpoint interval, at most.

        An interval is written while the next is embedded, by each worker.
        """
        intervals: dict[str, list[int]] = {}
        for who, what, number in self.notes():
            own = intervals.setdefault(who, [0])
            if what == "flushed":
                own.append(0)
            own[-1] += number
        total = sum(sum(own) for own in intervals.values())
        unsure = sum(sum(own[-2:]) for own in intervals.values())
        return total, unsure, sum(max(own) for own in intervals.values())


class Harness:
    """Stages with what they need, their older results, and their unbroken ones."""

    def __init__(self, folder: Path, seed: int, flush: float = 0.05, times: int = 12) -> None:
        self.summary = Summary()
        self._folder, self._rng, self._flush = folder, random.Random(seed), flush
        random.seed(seed)
        tiny = write_tiny_model(folder / "models")
        text = EDGE.read_text()
        self._inputs = {
            "old": self._given("old", text.replace(">", ">old_"), tiny, 3),
            "new": self._given("new", text, tiny, times),
        }
        self._rows = frame_meta(self._inputs["new"].names["TABLE"][0]).rows
        self.out = folder / "out"
        self._known: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {}

    def _given(self, name: str, text: str, model: Model, times: int) -> Inputs:
        folder = self._folder / name
        folder.mkdir()
        fasta = folder / "contigs.fa"
        fasta.write_text("".join(text.replace(">", f">{n}_") for n in range(times)))
        other = write_tiny_model(folder / "parts", "other", seed=len(name + text))
        return Inputs.of(fasta, folder, model, other, 3)

    def _start(self, stage: str, *, age: str = "new", over: bool = False) -> Run:
        words = self._inputs[age].command(TWICE.get(stage, stage), self.out, force=over)
        return Run(words, self._folder / "notes", self._flush)

    def _unbroken(self, stage: str, age: str) -> tuple[dict[str, Any], float]:
        """Its results, and how long it took; they are left there."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        start = time.monotonic()
        run = self._start(stage, age=age)
        assert run.end(300) == 0, run.said
        return results(self.out), time.monotonic() - start

    def _known_of(self, stage: str) -> tuple[dict[str, Any], dict[str, Any], float]:
        """A stage's older results and its unbroken ones, and how long these take."""
        if stage not in self._known:
            old, _ = self._unbroken(stage, "old")
            shutil.copytree(self.out, self._folder / "older" / stage)
            self._known[stage] = (old, *self._unbroken(stage, "new"))
            print(f"{stage}: {self._known[stage][2]:.1f} s unbroken", file=sys.stderr)
        return self._known[stage]

    def _finished(self) -> int:
        """Frames that are done, by the shard that is, or by the journals in the folder."""
        whole = [path for path in (self.out / "s.h5", self.out / ".work/shard.h5") if path.exists()]
        if any(EmbeddingFile(path).rows == self._rows for path in whole):
            return self._rows
        places = {path.parent for path in self.out.rglob("*.journal")}
        return sum(int(Finished(place, self._rows).done.sum()) for place in places)

    def episode(self, stage: str, kills: int) -> None:
        """Kill a stage up to so many times, then let it end, and compare."""
        old, new, seconds = self._known_of(stage)
        shutil.rmtree(self.out, ignore_errors=True)
        over = self._rng.random() < 0.5
        if over:
            shutil.copytree(self._folder / "older" / stage, self.out)
        else:
            self.out.mkdir()
            old = {}
        embedding = stage.startswith(("embed", "predict"))
        total = 0
        for _ in range(kills):
            before = self._finished()
            run = self._start(stage, over=over)
            if not run.lasts(self._rng.uniform(0, seconds)):
                assert run.end(NOTICE) == 0, run.said
                total += run.embedded()[0]
                break
            self._kill(stage, run)
            found = results(self.out)
            old_or_new(found, old, new)
            total += run.embedded()[0]
            if embedding and found != new and run.embedded()[0]:
                self._measure(run, before)
        run = self._start(stage, over=over)
        assert run.end(300) == 0, run.said
        assert results(self.out) == new, f"{stage} is not as unbroken"
        left = [path.name for path in self.out.rglob("*") if ".partial" in path.name]
        assert not left, left
        self.summary.results[stage] += 1
        total += run.embedded()[0]
        if embedding and total:
            self.summary.frames += self._rows
            self.summary.twice += total - self._rows

    def _kill(self, stage: str, run: Run) -> None:
        number, place = self._rng.choice(NUMBERS), self._rng.choice(["parent", "worker", "group"])
        listens = any(what == "listens" for _, what, _ in run.notes())
        place = run.kill(number, place)
        code = run.end(NOTICE)
        said = run.said
        gentle = number != signal.SIGKILL
        ends = {0, 75} if gentle or place == "worker" else {0, -number}
        if not listens and gentle:  # Python's own start, whose end is its own
            ends |= {-number, 1}
        assert code in ends, f"{stage}: {code} after {number.name} of the {place}: {said}"
        if listens:
            assert "Traceback" not in said, said
            if code == 75:
                # behind it come the last lines of a worker that died
                assert any(line.startswith("virnucpro: ") for line in said.splitlines()), said
        self.summary.kills[f"{stage} / {number.name} / {place}"] += 1
        self.summary.moments["at work" if listens else "starting"] += 1
        self.summary.ends[f"{number.name} of the {place}: {code}"] += 1

    def _measure(self, run: Run, before: int) -> None:
        """What a kill cost: no more than was not yet written when it came."""
        embedded, unsure, interval = run.embedded()
        lost = before + embedded - self._finished()
        assert 0 <= lost <= unsure, (lost, unsure, run.said)
        if run.process.returncode == 75 and "was killed" not in run.said:
            assert lost == 0, run.said
        self.summary.lost.append(lost)
        self.summary.intervals.append(lost / interval)


def harness(folder: Path, kills: int, seed: int, stages: Sequence[str] = STAGES) -> Summary:
    """Kill stages, one after the other, so many times in all."""
    one = Harness(folder, seed)
    rng = random.Random(seed)
    while (done := one.summary.kills.total()) < kills:
        for stage in stages:
            one.episode(stage, rng.randint(1, 4))
        assert one.summary.kills.total() > done, "nothing is killed any more"
    return one.summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", default=STAGES)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pipelines", type=int, default=6, help="kills of a pipeline's run")
    parser.add_argument("-o", type=Path)
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="kills-", ignore_cleanup_errors=True) as folder:
        summary = harness(Path(folder), arguments.kills, arguments.seed, arguments.stages)
        summary.add(kill_pipelines(Path(folder), arguments.pipelines, arguments.seed))
    record = summary.record()
    text = json.dumps(record, indent=2) + "\n"
    print(text, end="")
    if arguments.o:
        arguments.o.write_text(text)


if __name__ == "__main__":
    main()
