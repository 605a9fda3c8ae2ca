"""What more devices bring: `virnucpro embed` on the first of them and on all, in turn.

    python benchmarks/devices.py contigs.fa.gz --devices cuda:0,cuda:1 -o devices.json

The contigs are repeated until they give enough frames. Without --model, one of the published sizes
with random weights is written first, and a few frames are embedded, so that kernels are compiled.
Times are from a process's first batch to its end, so that start-up is apart; a run of all ends with
the last of its workers and what comes after it, the tail.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import torch
from translate import replicate

from virnucpro_core.lab.benchmark.endtoend import write_random_model
from virnucpro_core.lab.benchmark.lines import PUBLISHED_SIZE
from virnucpro_core.lab.machine import machine
from virnucpro_core.parquet import frame_meta
from virnucpro_core.sequences.translate import translate

FIRST = re.compile(r"virnucpro\.embed: first batch (.*)")
THERE = re.compile(r"virnucpro\.embed: (\S+: there in .*)")
LAST = re.compile(r"virnucpro\.embed: \S+: [\d.]+ s: load")


def write_frames(contigs: Path, folder: Path, wanted: int, window: int) -> Path:
    """A frame table of about as many frames as wanted."""
    table, fasta = folder / "frames.parquet", folder / "contigs.fasta"
    megabases = 1.0
    while True:
        bases = replicate(contigs, fasta, megabases)
        translate([fasta], table, window)
        if (rows := frame_meta(table).rows) >= wanted:
            return table
        megabases = 1.02 * wanted / rows * bases / 1e6


def embed(frames: Path, output: Path, devices: str, model: list[str]) -> dict[str, Any]:
    """Seconds of one run: to its first batch, from there to its end, and to each worker's end."""
    command = [
        sys.executable,
        "-m",
        "virnucpro_core.cli",
        "-v",
        "embed",
        str(frames),
        "-o",
        str(output),
    ]
    start = time.perf_counter()
    run = subprocess.Popen(
        [*command, *model, "--devices", devices], stderr=subprocess.PIPE, text=True
    )
    assert run.stderr
    said: list[str] = []
    first: list[float] = []
    last: list[float] = []
    parts: list[str] = []
    for line in run.stderr:
        said.append(line)
        for pattern, times in ((FIRST, first), (LAST, last)):
            if pattern.search(line):
                times.append(time.perf_counter() - start)
        parts += [found[1] for found in (FIRST.search(line), THERE.search(line)) if found]
    if run.wait():
        raise SystemExit("".join(said[-20:]))
    end = time.perf_counter() - start
    return {
        "devices": devices,
        "start_up": round(first[0], 2),
        "start_up_of_the_last": round(first[-1], 2),
        "of_which": parts,
        "work": round(end - first[0], 2),
        "workers": [round(seconds - first[0], 2) for seconds in last],
        "tail": round(end - last[-1], 2),
    }


def compare(one: Path, all_: Path) -> dict[str, Any]:
    """Whether two shards have the same rows, and how far their values are apart."""
    with h5py.File(one) as a, h5py.File(all_) as b:
        x, y = a["embedding"][:], b["embedding"][:]
        return {
            "same_order": bool((a["frame_id"][:] == b["frame_id"][:]).all()),
            "relative_difference": float(np.linalg.norm(x - y) / np.linalg.norm(x)),
            "largest_difference": float(np.abs(x - y).max()),
        }


def say(record: dict[str, Any], output: Path | None) -> None:
    """Print a record, and keep it where that was asked for."""
    text = json.dumps(record, indent=2)
    print(text)
    if output:
        output.write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contigs", type=Path)
    parser.add_argument("--devices", default="cuda:0,cuda:1")
    parser.add_argument("--frames", type=int, default=40_000)
    parser.add_argument("--window", type=int, default=500)
    parser.add_argument("--model", help="a model at hand, for example mini")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    devices = options.devices.split(",")
    with TemporaryDirectory() as name:
        folder = Path(name)
        model = ["--model", options.model]
        if not options.model:
            with torch.inference_mode():
                write_random_model(
                    folder / "models" / "random", PUBLISHED_SIZE, torch.device(devices[0])
                )
            model = ["--model", "random", "--models-dir", str(folder / "models")]
        frames = write_frames(options.contigs, folder, options.frames, options.window)
        (folder / "few").mkdir()
        few = write_frames(options.contigs, folder / "few", 300, options.window)
        embed(few, folder / "few.h5", devices[0], model)  # compiles the kernels
        outputs = [folder / "one.h5", folder / "all.h5"]
        runs = [
            embed(frames, output, names, model)
            for output, names in zip(outputs, (devices[0], options.devices), strict=True)
        ]
        workers = runs[1]["workers"]
        record = {
            "machine": machine(torch.device(devices[0])),
            "frames": frame_meta(frames).rows,
            "model": options.model or "published sizes, random weights",
            "runs": runs,
            "times_as_fast": round(runs[0]["work"] / runs[1]["work"], 3),
            "apart_at_the_end": round((max(workers) - min(workers)) / max(workers), 4),
            "results": compare(*outputs),
        }
    say(record, options.output)


if __name__ == "__main__":
    main()
