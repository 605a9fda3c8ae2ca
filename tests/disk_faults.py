"""Let every call that changes a file fail, in every stage, and compare what comes of it.

    python tests/disk_faults.py [--each 1000] [-o disk-faults.md] [STAGE...]

A preloaded library gives calls on files under a folder a number; the one asked for fails, or brings
a signal. Each command is a fork of a process that has its imports behind it.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import faulthandler
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

from stages import STAGES, UNPACKED, Inputs, old_or_new, results
from tiny import write_tiny_model

HERE = Path(__file__).parent
EDGE = HERE / "data/original/edge.fa"
SECONDS = 60
CHANGES = "open write truncate allocate make link"
NAMES = f"{CHANGES} rename remove"
ALL = f"{NAMES} sync close lock"


T = TypeVar("T")


class Fault(NamedTuple):
    """What a call says, or the signal that comes; of which calls, and whether it is to stay so."""

    code: int
    calls: str
    lasting: str = ""


FAULTS = {
    "ENOSPC": Fault(errno.ENOSPC, f"{CHANGES} sync close", CHANGES),
    "EDQUOT": Fault(errno.EDQUOT, f"{CHANGES} sync close"),
    "EIO": Fault(errno.EIO, ALL),
    "EIO from then on": Fault(errno.EIO, ALL, ALL),
    "EROFS from then on": Fault(
        errno.EROFS, f"{CHANGES} rename remove", f"{CHANGES} rename remove"
    ),
    "ENOLCK": Fault(errno.ENOLCK, "lock"),
    "SIGKILL": Fault(-signal.SIGKILL, ALL),
    "SIGTERM": Fault(-signal.SIGTERM, ALL),
}


class Call(NamedTuple):
    """A call that changes a file, and how often it did so before."""

    kind: str
    path: str
    time: int


@dataclass
class Ended:
    """A command's exit code and what it said."""

    code: int
    said: list[str]


class Disk:
    """A folder in which calls fail as they are told to."""

    def __init__(self, folder: Path, server: subprocess.Popen[str]) -> None:
        self.folder, self._server = folder, server
        self._said, self._log = folder.parent / "said", folder.parent / "calls"

    def run(self, words: list[str], fault: Fault | None = None, at: int = -1) -> Ended:
        """Run a command; the fault is at call number `at`."""
        code, lasting = (fault.code, fault.lasting) if fault else (0, "")
        self._said.unlink(missing_ok=True)
        order = [str(self.folder), at, code, lasting, str(self._said), str(self._log), words]
        assert self._server.stdin
        assert self._server.stdout
        print(json.dumps(order), file=self._server.stdin, flush=True)
        ended = int(self._server.stdout.readline())
        return Ended(ended, self._said.read_text().splitlines())

    def calls(self) -> list[Call]:
        """Those of the last command."""
        found: list[Call] = []
        counts: dict[tuple[str, str], int] = {}
        for line in self._log.read_text().splitlines():
            kind, _, path = line.partition(" ")
            name = os.path.relpath(path, self.folder)
            counts[kind, name] = counts.get((kind, name), -1) + 1
            found.append(Call(kind, name, counts[kind, name]))
        return found


@contextmanager
def failing_disk(folder: Path) -> Iterator[Disk]:
    """A Disk in `folder`/disk; it takes a C compiler."""
    library = folder / "disk_faults.so"
    source = str(HERE / "disk_faults.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), source, "-ldl"], check=True)
    (folder / "disk").mkdir()
    env = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, __file__, "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**env, **UNPACKED, "TMPDIR": str(folder / "disk")},
    ) as server:
        yield Disk(folder / "disk", server)
        assert server.stdin
        server.stdin.close()


def serve() -> None:
    """Fork for each order on stdin, and write the exit code of what it does."""
    import virnucpro_core.embedding.engine
    import virnucpro_core.one_process
    import virnucpro_core.published.imports  # noqa: F401
    from virnucpro_core import cli

    library = ctypes.CDLL(None)
    for line in sys.stdin:
        folder, at, code, lasting, said, log, words = json.loads(line)
        child = os.fork()
        if child == 0:
            for file in (1, 2):
                os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), file)
            faulthandler.dump_traceback_later(SECONDS, exit=True)  # where it hangs
            calls = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            sys.argv[1:] = words
            library.arm(folder.encode(), at, code, bool(lasting), lasting.encode(), calls)
            cli.main()
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


class Case(NamedTuple):
    """A fault and what came of it; wrong: why it should not have."""

    stage: str
    fault: str
    call: Call
    code: int
    sentence: str
    wrong: str


def _spread(items: Sequence[T], most: int) -> Sequence[T]:
    """At most so many items, evenly spread."""
    number = min(most, len(items))
    return [items[n * len(items) // number] for n in range(number)]


class Sweep:
    """Stages on a failing disk, with what they are given and what they make of it unbroken."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder, self._disk, self._out = folder, disk, disk.folder / "out"
        tiny = write_tiny_model(folder / "models")
        records = EDGE.read_text().split(">")[1:]
        self._given = {}
        for name, some in (("old", records[8:12]), ("new", records[-12:])):
            given = folder / name
            given.mkdir()
            (given / "contigs.fa").write_text("".join(f">{record}" for record in some))
            other = write_tiny_model(folder / "parts", name, seed=len(some))
            self._given[name] = Inputs.of(given / "contigs.fa", given, tiny, other, 2)

    def _run(self, stage: str, age: str, over: bool, *fault: Any) -> Ended:
        words = self._given[age].command(stage, self._out, force=over)
        return self._disk.run(words, *fault)

    def _begin(self, older: Path | None) -> None:
        shutil.rmtree(self._disk.folder, ignore_errors=True)
        self._disk.folder.mkdir()
        if older:
            shutil.copytree(older, self._out)
        else:
            self._out.mkdir()

    def unbroken(self, stage: str, over: bool) -> list[Call]:
        """Run a stage without a fault, on which cases go by then; its calls.

        over: begin with older results in the folder, there and in each case.
        """
        self._begin(None)
        ended = self._run(stage, "old", False)
        assert ended.code == 0, ended
        older = self._folder / "older"
        shutil.rmtree(older, ignore_errors=True)
        shutil.copytree(self._out, older)
        self._stage, self._older = stage, older if over else None
        self._old = results(self._out) if over else {}
        self._begin(self._older)
        ended = self._run(stage, "new", over)
        assert ended.code == 0, ended
        self._new = results(self._out)
        return self._disk.calls()

    def of(self, stage: str, over: bool, each: int, most: int = 10_000) -> Iterator[Case]:
        """Cases of a stage: at most `each` of a fault and a kind of call, and `most` in all."""
        calls = self.unbroken(stage, over)
        points = [
            (fault, at)
            for fault in FAULTS
            for kind in FAULTS[fault].calls.split()
            for at in _spread([n for n, call in enumerate(calls) if call.kind == kind], each)
        ]
        for fault, at in _spread(points, most):
            yield self.case(fault, calls[at], at)

    def case(self, fault: str, call: Call, at: int) -> Case:
        """What comes of a fault at a call, by its number, and of the same command then."""
        self._begin(self._older)
        over = self._older is not None
        ended = self._run(self._stage, "new", over, FAULTS[fault], at)
        wrong = self._wrong(ended, FAULTS[fault])
        if not wrong:
            wrong = self._unlike(self._run(self._stage, "new", over))
        sentence = ended.said[-1] if ended.said else ""
        return Case(self._stage, fault, call, ended.code, sentence, wrong)

    def _wrong(self, ended: Ended, fault: Fault) -> str:
        """Why an end is not as it is promised; nothing where it is."""
        last = ended.said[-1] if ended.said else ""
        ends = {1} if fault.code > 0 else {75} if -fault.code == signal.SIGTERM else {fault.code}
        if ended.code not in {0, *ends}:
            return f"exit code {ended.code}"
        foreign = [line for line in ended.said if not line.startswith(("virnucpro", "own: "))]
        foreign = [line for line in foreign if "contigs: " not in line]
        if foreign:
            return f"says: {foreign[0]}"
        if ended.code in (1, 75) and not last.startswith("virnucpro: "):
            return "no sentence"
        if ended.code == 1 and not re.search(r"virnucpro: /\S+: ", last):
            return "names no file"
        try:
            found = results(self._out)
            old_or_new(found, self._old, self._new)
        except Exception as error:
            return f"leaves {error}"
        return "0 without a result" if ended.code == 0 and found != self._new else ""

    def _unlike(self, again: Ended) -> str:
        if again.code:
            return f"then exit code {again.code}: {again.said[-1:]}"
        left = [path.name for path in self._out.rglob("*") if ".partial" in path.name]
        if left:
            return f"then leaves {left[0]}"
        return "" if results(self._out) == self._new else "then another result"


def table(cases: Sequence[Case]) -> str:
    """A page of Markdown, with a row for each stage and fault."""
    wrong = sum(bool(case.wrong) for case in cases)
    lines = [
        "# Calls that change files, failing\n",
        f"{len(cases)} cases, {wrong} of them not as docs/reliability.md promises. Each stage, in",
        "an empty folder and over older results; exit codes with the number of cases.\n",
        "| stage | fault | calls that failed | exit codes | says, for example |",
        "|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.stage, case.fault), []).append(case)
    for (stage, fault), own in groups.items():
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(c.call.kind for c in own).items())
        codes = ", ".join(
            f"{code}: {n}" for code, n in sorted(Counter(c.code for c in own).items())
        )
        said = next((c.sentence for c in own if c.code > 0), "")
        said = re.sub(r"/\S+/(?=[^/\s]+: )", "", said).removeprefix("virnucpro: ")
        lines.append(f"| {stage} | {fault} | {kinds} | {codes} | {said} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    if sys.argv[1:] == ["serve"]:
        serve()
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", default=[*STAGES])
    parser.add_argument("--each", type=int, default=1000)
    parser.add_argument("-o", type=Path)
    arguments = parser.parse_args()
    cases: list[Case] = []
    with TemporaryDirectory(prefix="faults-") as name, failing_disk(Path(name)) as disk:
        sweep = Sweep(Path(name), disk)
        for stage in arguments.stages:
            for over in (False, True):
                own = list(sweep.of(stage, over, arguments.each))
                cases += own
                wrong = [case for case in own if case.wrong]
                print(stage, "over" if over else "fresh", len(own), len(wrong), flush=True)
                for case in wrong:
                    print("   ", *case[1:], flush=True)
            if arguments.o:
                arguments.o.write_text(table(cases))


if __name__ == "__main__":
    main()
