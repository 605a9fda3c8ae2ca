"""What many pieces cost Nextflow's head: stub runs of one sample, timed.

Each piece is two tasks, translate and embed, which do nothing here: what is left is the head's own
work and the start of a shell. `virnucpro` is a two-line script, since a task asks its version.

    python benchmarks/pieces.py 250 1000 4000 -o docs/benchmarks/pieces.json
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]

CONFIG = """
executor.cpus = 8
process {{
    resourceLimits = [:]
    memory = 50.MB
    withLabel: 'process_single|process_gpu' {{ cpus = 1; memory = 50.MB }}
    withName: VIRNUCPRO_SPLIT {{ ext.stub_pieces = {pieces} }}
}}
"""


def measure(pieces: int) -> dict[str, float | int]:
    """Run with that many pieces; wall seconds, tasks a second, the head's peak of memory."""
    with tempfile.TemporaryDirectory(prefix="pieces-") as name:
        folder = Path(name)
        (folder / "bin").mkdir()
        fake = folder / "bin" / "virnucpro"
        fake.write_text("#!/bin/sh\necho virnucpro 0.1.0\n")
        fake.chmod(0o755)
        (folder / "in.fa").write_text(">c\nACGT\n")
        (folder / "pieces.config").write_text(CONFIG.format(pieces=pieces))
        words = ["-c", "pieces.config", "run", f"{ROOT}/main.nf", "-stub"]
        env = {**os.environ, "NXF_ANSI_LOG": "false", "PATH": f"{fake.parent}:{os.environ['PATH']}"}
        start = time.monotonic()
        with (folder / "out").open("wb") as out:
            head = subprocess.Popen(
                [f"{ROOT}/nextflow", *words, "--input", "in.fa", "--model", "mini"],
                cwd=folder,
                env=env,
                stdout=out,
                stderr=out,
            )
            peak = ticks = 0
            while head.poll() is None:
                status = Path(f"/proc/{head.pid}/status").read_text()
                if found := re.search(r"VmHWM:\s+(\d+) kB", status):
                    peak = max(peak, int(found[1]))
                fields = Path(f"/proc/{head.pid}/stat").read_text().rpartition(")")[2].split()
                ticks = max(ticks, int(fields[11]) + int(fields[12]))  # utime, stime
                time.sleep(0.5)
        seconds = time.monotonic() - start
        if head.returncode:
            raise SystemExit((folder / "out").read_text()[-3000:])
        with (folder / "results" / "pipeline_info" / "trace.txt").open() as handle:
            tasks = sum(
                row["status"] == "COMPLETED" for row in csv.DictReader(handle, delimiter="\t")
            )
        return {
            "pieces": pieces,
            "tasks": tasks,
            "seconds": round(seconds, 1),
            "tasks_per_second": round(tasks / seconds, 1),
            "head_cpu_ms_per_task": round(1000 * ticks / os.sysconf("SC_CLK_TCK") / tasks),
            "head_peak_mb": round(peak / 1024),
            "report_mb": round(
                (folder / "results" / "pipeline_info" / "report.html").stat().st_size / 2**20, 1
            ),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pieces", nargs="+", type=int)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    runs = []
    for pieces in options.pieces:
        runs.append(measure(pieces))
        print(runs[-1], flush=True)
        if options.output:
            load = {"cores": cores, "load_average": round(os.getloadavg()[0], 1), "runs": runs}
            options.output.write_text(json.dumps(load, indent=2) + "\n")


if __name__ == "__main__":
    main()
