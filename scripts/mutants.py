"""Change the package in one place at a time, and see whether a test notices.

    python scripts/mutants.py [--number 200] [--jobs 2] [-o mutants.json [--again]] [MODULE...]

A mutant is a comparison, a condition, an operator, a number or a keyword argument that is another,
or a call or a refusal that is gone. Each is written into a copy of the package, and the tests of
its module run against that, those first that noticed the mutants before it, until one fails. What
survives is printed; what has a reason in `scripts/mutants.txt`, all of a kind in a module or that
in one line alone, is equivalent, and counts as killed by none. Tests that fail over the module as
it is would kill all, so it is left out, and the exit code 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, cast

import pytest
from mutate import ROOT, Mutant, mutants, unchanged

EQUIVALENT = Path(__file__).with_suffix(".txt")
LIMIT = 1800
"""Seconds for the tests of a module as it is; a mutant may take three times what they took."""

TESTS = {
    "sequences/windows": "frames legacy properties",
    "sequences/frames": "frames codes properties legacy",
    "sequences/codes": "codes frames",
    "sequences/tokens": "tokens encoders frames",
    "sequences/fasta": "fasta reading stdin",
    "sequences/split": "split files progress stdin",
    "sequences/translate": "frames codes genbank predict progress",
    "embedding/journal": "journal embedding",
    "embedding/shards": "shards journal merge",
    "embedding/merge": "merge properties files",
    "embedding/hdf5": "hdf5 merge disk",
    "embedding/schedule": "schedule embedding workers properties",
    "embedding/devices": "devices",
    "models/classifier": "classifier",
    "models/rule": "rule contigs calls",
    "models/store": "store imports own_head options fuzz_models",
    "models/layout": "store imports checkpoints fuzz_models",
    "models/gate": "validate",
    "results/calls": "calls contigs legacy",
    "results/contigs": "contigs calls properties_calls",
    "results/criteria": "criteria options_calls",
    "results/prevalence": "prevalence contigs properties_calls",
    "results/regions": "regions properties_calls",
    "results/legacy": "legacy",
    "results/classify": "calls rule predict calls_refused files progress",
    "results/kept": "reading calls calls_refused predict configuration options_calls",
    "results/again": "contigs calls calls_refused options_calls configuration report",
    "one_process": "predict options options_calls files validate configuration",
    "files": "files full_disk disk",
    "parquet": "reading fuzz_tables halves split files full_disk",
}
"""Of each module that decides values or files, the tests that are its own, without `test_`."""

SLOW = "torch h5py pyarrow.parquet pyarrow.compute typer jinja2 Bio.Data"
"""What takes long to import and is none of the package: once for all mutants."""


class LatestFirst:
    """A plugin of pytest: the tests that failed last, over other mutants, run first.

    Mutants come in the order of their lines, and a line's neighbours are noticed by its tests.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.failed: list[str] = json.loads(path.read_text()) if path.exists() else []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        rank = {name: at for at, name in enumerate(self.failed)}
        items.sort(key=lambda item: rank.get(item.nodeid, len(rank)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            others = [name for name in self.failed if name != report.nodeid]
            self._path.write_text(json.dumps([report.nodeid, *others][:8]))


def survives(mutant: Mutant, copy_: Path, limit: float = LIMIT) -> bool:
    """Whether the module's tests pass over the mutant within a limit, in a copy of the project.

    They run in a fork of this process, which has imported what takes long, none of it the package.
    """
    path = copy_ / "virnucpro_core" / f"{mutant.module}.py"
    original = path.read_text()
    path.write_text(mutant.source)
    if not (child := os.fork()):
        _run_tests(mutant.module, copy_)
    ended, due = (0, 0), time.monotonic() + limit
    try:
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < due:
            time.sleep(0.02)
        return ended == (child, 0)  # a loop without an end is noticed
    finally:
        if ended == (0, 0):
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        path.write_text(original)


def _run_tests(module: str, copy_: Path) -> NoReturn:
    """Run a module's tests in this process, and end it with their code."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nowhere, stream)
        os.chdir(copy_)
        os.environ |= {"PYTHONPATH": str(copy_), "PYTHONDONTWRITEBYTECODE": "1"}
        os.environ.setdefault("VIRNUCPRO_SHARED", str(ROOT.parent / "shared"))
        sys.path.insert(0, str(copy_))
        sys.dont_write_bytecode = True
        tests = [f"tests/test_{name}.py" for name in TESTS[module].split()]
        marks = ["-m", "not slow and not gpu", f"--basetemp={copy_ / 'tmp'}"]
        first = LatestFirst(copy_ / "noticed.json")
        code = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *marks, *tests], [first]))
    finally:
        os._exit(code)


def judge(copy_: Path, chosen: Sequence[Mutant], judged: Connection) -> NoReturn:
    """Say of each mutant whether it survives, and end this process; one that forks has no threads.

    Of a module whose tests fail without a change, that alone is said.
    """
    limits: dict[str, float] = {}
    try:
        for mutant in chosen:
            if mutant.module not in limits:
                begin, as_it_is = time.monotonic(), unchanged(mutant.module)
                passes = survives(as_it_is, copy_)
                failed = LatestFirst(copy_ / "noticed.json").failed[:1]
                judged.send((replace(as_it_is, before="".join(failed) or "all"), passes))
                limits[mutant.module] = 30 + 3 * (time.monotonic() - begin) if passes else 0
            if limits[mutant.module]:
                judged.send((mutant, survives(mutant, copy_, limits[mutant.module])))
        judged.close()
    finally:
        os._exit(0)


def write(record: dict[str, Any], tried: Sequence[Mutant], alive: Sequence[Mutant]) -> None:
    """Put what was found of whole modules into a record."""
    for module, of in Counter(one.module for one in tried).items():
        survived = [named(one) for one in alive if one.module == module]
        _enter(record, module, of, survived)


def write_again(
    record: dict[str, Any],
    modules: Sequence[str],
    chosen: Sequence[Mutant],
    tried: Sequence[Mutant],
    alive: Sequence[Mutant],
) -> None:
    """Put into a record what is found of its survivors; what is none any more is left out."""
    for module in modules:
        were = _of(record, module)
        judged = {named(one) for one in tried}
        left = {named(one) for one in chosen}
        survived = [named(one) for one in alive if one.module == module]
        of = record["modules"][module][1] - sum(one not in left for one in were)
        _enter(record, module, of, [one for one in were if one in left - judged] + survived)


def _of(record: dict[str, Any], module: str) -> list[str]:
    return [one for one in record["survivors"] if one.startswith(f"{module}.py: ")]


def _enter(record: dict[str, Any], module: str, of: int, survived: list[str]) -> None:
    were = _of(record, module)
    record["survivors"] = [one for one in record["survivors"] if one not in were] + survived
    record["modules"][module] = [of - len(survived), of]
    for at, key in enumerate(("killed", "of")):
        record[key] = sum(one[at] for one in record["modules"].values())


def by_line(module: str) -> list[Mutant]:
    """A module's mutants, neighbours side by side."""
    return sorted(mutants(module), key=lambda one: one.line)


def named(mutant: Mutant) -> str:
    """A mutant as the record names it, and a reason that holds for one line alone."""
    return f"{mutant} in {mutant.text}"


def main() -> None:
    for name in SLOW.split():
        importlib.import_module(name)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="such as results/calls")
    parser.add_argument("--number", type=int, default=0, help="all, unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "-o", "--output", type=Path, help="a record to begin, or to bring up to date"
    )
    parser.add_argument("--again", action="store_true", help="those alone that survive in it")
    given = parser.parse_args()
    record: dict[str, Any] = {"killed": 0, "of": 0, "modules": {}, "survivors": []}
    if given.output and given.output.exists():
        record = json.loads(given.output.read_text())
    every = [one for module in given.modules or TESTS for one in by_line(module)]
    if given.again:
        every = [one for one in every if named(one) in record["survivors"]]
    reasons = dict(
        line.rsplit(" # ", 1) for line in EQUIVALENT.read_text().splitlines() if " # " in line
    )
    if given.number:
        every = random.Random(given.seed).sample(every, min(given.number, len(every)))
    chosen = [one for one in every if not {str(one), named(one)} & reasons.keys()]
    alive: list[Mutant] = []
    tried: list[Mutant] = []
    broken: set[str] = set()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        ExitStack() as jobs,
        suppress(KeyboardInterrupt),
    ):
        waiting: list[Connection] = []
        for job in range(given.jobs):
            place = Path(folder) / str(job)
            shutil.copytree(ROOT, place, symlinks=True, ignore=shutil.ignore_patterns(".*"))
            mine = chosen[job :: given.jobs]
            here, there = multiprocessing.Pipe(duplex=False)
            # no Process of multiprocessing, whose children may be no parents, as tests' are
            if not (child := os.fork()):
                judge(place, mine, there)
            there.close()
            waiting.append(here)
            jobs.callback(os.kill, child, signal.SIGTERM)
        while waiting:
            for one in cast(list[Connection], wait(waiting)):
                try:
                    mutant, survived = one.recv()
                except EOFError:
                    waiting.remove(one)
                    continue
                if not mutant.line:
                    if not survived:
                        broken.add(mutant.module)
                        what = f"{mutant.module}: its tests fail without a change"
                        print(f"{what}: {mutant.before}", flush=True)
                    continue
                tried.append(mutant)
                if survived:
                    alive.append(mutant)
                    print(f"survived, line {mutant.line}: {named(mutant)}", flush=True)
    tried, alive = ([one for one in group if one.module not in broken] for group in (tried, alive))
    print(f"{len(tried) - len(alive)} of {len(tried)} killed")
    if given.again:
        modules = [one for one in given.modules or record["modules"] if one not in broken]
        write_again(record, modules, chosen, tried, alive)
    else:
        write(record, tried, alive)
    if given.output:
        given.output.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
