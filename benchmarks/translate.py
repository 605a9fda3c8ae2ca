"""Time `virnucpro translate` against seqkit and Biopython: same file, one core, in turns.

    python benchmarks/translate.py contigs.fa.gz --json docs/benchmarks/translate.json

Ours reads, cuts windows, keeps the stop-free frames and writes Parquet; seqkit (`translate -f 6`)
and Biopython translate the whole contigs in six frames and write nothing. Every run is a process
of its own, start-up and all, pinned to one core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from virnucpro_core.sequences.fasta import read_fasta

BIOPYTHON = """
import sys
from Bio import SeqIO
residues = 0
for record in SeqIO.parse(sys.argv[1], "fasta"):
    for strand in (record.seq, record.seq.reverse_complement()):
        for frame in range(3):
            length = (len(strand) - frame) // 3 * 3
            residues += len(strand[frame : frame + length].translate())
"""


def replicate(source: Path, target: Path, megabases: float) -> int:
    """Write the contigs of `source` again and again, under new ids; returns the bases."""
    contigs = list(read_fasta([source]))
    bases = copy = 0
    with target.open("wb") as handle:
        while bases < megabases * 1e6:
            for contig in contigs:
                handle.write(b">%d_%s\n" % (copy, contig.id.encode()))
                for at in range(0, len(contig.sequence), 60):
                    handle.write(contig.sequence[at : at + 60] + b"\n")
                bases += len(contig.sequence)
            copy += 1
    return bases


def seconds(command: list[str]) -> dict[str, float]:
    """Wall and processor time of one run on one core."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {0}),
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fasta", type=Path)
    parser.add_argument("--megabases", type=float, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    seqkit = shutil.which("seqkit")
    with TemporaryDirectory() as folder:
        fasta, frames = Path(folder) / "contigs.fa", Path(folder) / "frames.parquet"
        bases = replicate(arguments.fasta, fasta, arguments.megabases)
        ours = [sys.executable, "-m", "virnucpro_core.cli", "translate", str(fasta)]
        commands = {
            "virnucpro": [*ours, "-o", str(frames), "--window", "500"],
            "biopython": [sys.executable, "-c", BIOPYTHON, str(fasta)],
        }
        if seqkit:
            commands["seqkit"] = [seqkit, "translate", "-j", "1", "-f", "6", str(fasta)]
        else:
            print("seqkit is not on PATH: it is left out", file=sys.stderr)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for _ in range(arguments.rounds):
            for name, command in commands.items():
                runs[name].append(seconds(command))
    median = {
        clock: {name: statistics.median(run[clock] for run in of) for name, of in runs.items()}
        for clock in ("wall", "cpu")
    }
    result = {
        "bases": bases,
        "rounds": arguments.rounds,
        "seconds": median,
        "megabases_per_second": {
            name: round(bases / spent / 1e6, 2) for name, spent in median["wall"].items()
        },
        "times_as_fast_as": {
            clock: {
                name: round(spent / of["virnucpro"], 2)
                for name, spent in of.items()
                if name != "virnucpro"
            }
            for clock, of in median.items()
        },
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
