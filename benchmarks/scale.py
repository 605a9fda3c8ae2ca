"""How the stages around `embed` grow: time and peak of memory of each, at several sizes.

    python benchmarks/scale.py contigs.fa.gz -o docs/benchmarks/scale [--windows 125000 250000 …]

Contigs are those of the FASTA over and over, each turned round at a place of its own. They go
through `split`, `translate`, `merge`, `classify` and `report` as processes of their own. Embeddings
are made up, at the published width, in shards of one piece each. Two more shapes follow: 300 Mb in
one contig, and a million contigs of 500 bases.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from virnucpro_core.embedding.engine import origin_of
from virnucpro_core.embedding.shards import create_shard, seal, write_rows
from virnucpro_core.lab.augment import train_tokenizer
from virnucpro_core.lab.curves import plot
from virnucpro_core.lab.export import write_modules
from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.models.dnabert_s import DNABERTS
from virnucpro_core.models.esm2 import ESM2
from virnucpro_core.models.store import Model
from virnucpro_core.parquet import frame_meta
from virnucpro_core.sequences.fasta import read_fasta

WINDOW, DIM = 500, 3328
ROWS = 4096
STAGES = ("split", "translate", "merge", "classify", "report")
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_maxrss * 1024, used.ru_utime + used.ru_stime)
"""
"""A process of its own, since the peak that a child is said to have is at least its parent's."""


def shallow_model(folder: Path) -> Model:
    """A model with the published widths and classifier, and one layer in each encoder."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["ACGT" * 100, "GATTACA" * 50], 32)
    return write_modules(
        folder,
        WINDOW,
        dnabert_s=DNABERTS(32, 1, 768, 12, 64).float(),
        esm2=ESM2(1, 2560, 40),
        classifier=MLPClassifier(DIM, 512),
        tokenizer=tokenizer.to_str(),
    )


def turned(fasta: Path) -> Iterator[bytes]:
    """The contigs of a FASTA without end, each turned round at a random place."""
    rng = np.random.default_rng(1)
    for contig in cycle(list(read_fasta([fasta]))):
        at = int(rng.integers(len(contig.sequence)))
        yield contig.sequence[at:] + contig.sequence[:at]


def windows_in(fasta: Path, wanted: int, path: Path) -> None:
    """Contigs as long as those of the FASTA, until they have so many windows."""
    with path.open("wb") as handle:
        for n, bases in enumerate(turned(fasta)):
            if wanted <= 0:
                break
            handle.write(b">k141_%d\n%s\n" % (n, bases))
            wanted -= -(-len(bases) // WINDOW)


def one_contig(fasta: Path, bases: int, path: Path) -> None:
    with path.open("wb") as handle:
        handle.write(b">chromosome\n")
        for part in turned(fasta):
            handle.write(part[:bases])
            bases -= len(part)
            if bases <= 0:
                break
        handle.write(b"\n")


def short_contigs(fasta: Path, count: int, path: Path) -> None:
    pool = b"".join(part for part, _ in zip(turned(fasta), range(2000), strict=False))
    starts = np.random.default_rng(2).integers(len(pool) - WINDOW, size=count)
    with path.open("wb") as handle:
        for n, at in enumerate(starts.tolist()):
            handle.write(b">k141_%d\n%s\n" % (n, pool[at : at + WINDOW]))


def run(*arguments: object) -> dict[str, float]:
    """Seconds, those of processors, and peak of memory, in MB, of one command."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "virnucpro_core.cli", "-q", *map(str, arguments)]
    said = subprocess.run(
        [sys.executable, "-c", PEAK, *command], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    peak, cpu = said.split()
    return {"seconds": time.perf_counter() - begun, "cpu": float(cpu), "mb": int(peak) / 1e6}


def made_up(frames: Path, shard: Path, model: Model) -> None:
    """A shard of a frame table with random embeddings."""
    meta = frame_meta(frames)
    create_shard(shard, frames, meta.digest, origin_of(model, "fp32"), DIM)
    values = np.random.default_rng(0).standard_normal((ROWS, DIM), np.float32)
    parts = (values[: min(ROWS, meta.rows - at)] for at in range(0, meta.rows, ROWS))
    seal(shard, write_rows(shard, parts), [])


def measure(contigs: Path, model: Model, folder: Path) -> dict[str, Any]:
    """Every stage once, over one file of contigs."""
    chosen = ("--model", model.name, "--models-dir", model.folder.parent)
    found = {"split": run("split", contigs, "-o", folder / "split")}
    for name in ("frames", "shards"):
        (folder / name).mkdir()
    each = []
    for piece in sorted((folder / "split").glob("piece_*")):
        table = folder / "frames" / f"{piece.stem}.parquet"
        each.append(run("translate", piece, "-o", table, *chosen))
        made_up(table, folder / "shards" / f"{piece.stem}.h5", model)
    found["translate"] = {
        key: (max if key == "mb" else sum)(one[key] for one in each) for key in each[0]
    }
    merged, out = folder / "merged.h5", folder / "out"
    tables = ("--frames", folder / "frames")
    inventory = ("--contigs", folder / "split/contigs.parquet")
    found["merge"] = run("merge", folder / "shards", *tables, "-o", merged)
    found["classify"] = run("classify", merged, *tables, *inventory, "-o", out, *chosen)
    found["report"] = run("report", out, "-o", folder / "report.html")
    summary = json.loads((out / "summary.json").read_text())
    return {
        "contigs": summary["contigs"]["total"],
        "windows": summary["windows"]["total"],
        "frames": summary["frames"]["total"],
        "pieces": len(each),
        "page_mb": (folder / "report.html").stat().st_size / 1e6,
        "stages": {stage: {k: round(v, 2) for k, v in found[stage].items()} for stage in STAGES},
    }


def fit(sizes: list[dict[str, Any]], stage: str, key: str) -> dict[str, float]:
    """A line through a figure of a stage at all sizes: at none, of each million windows, R²."""
    x = np.array([size["windows"] / 1e6 for size in sizes])
    y = np.array([size["stages"][stage][key] for size in sizes])
    slope, start = np.polyfit(x, y, 1)
    spread = float(((y - y.mean()) ** 2).sum())
    left = float(((y - start - slope * x) ** 2).sum())
    return {
        "at_none": round(float(start), 2),
        "a_million": round(float(slope), 2),
        "r2": round(1 - left / spread, 4) if spread else 1.0,
    }


def picture(sizes: list[dict[str, Any]], key: str, unit: str) -> str:
    most = max(one["stages"][stage][key] for one in sizes for stage in STAGES)
    last = max(one["windows"] for one in sizes)
    lines = {
        stage: np.array([(s["windows"] / last, s["stages"][stage][key] / most) for s in sizes])
        for stage in STAGES
    }
    axes = (f"windows, 1 = {last:,}", f"{unit}, 1 = {most:,.0f}")
    return plot(f"The stages around embed: {unit}", axes, lines, (0, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("contigs", type=Path)
    parser.add_argument(
        "--windows", type=int, nargs="*", default=[125_000, 250_000, 500_000, 1_000_000]
    )
    parser.add_argument("--one-contig", type=int, default=300_000_000, metavar="BASES")
    parser.add_argument("--short-contigs", type=int, default=1_000_000, metavar="COUNT")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=options.output) as name:
        model = shallow_model(Path(name) / "models" / "shallow")

        def measured(write: Any, wanted: int) -> dict[str, Any]:
            with TemporaryDirectory(dir=name) as place:
                folder = Path(place)
                write(options.contigs, wanted, folder / "contigs.fasta")
                found = measure(folder / "contigs.fasta", model, folder)
            print(json.dumps(found), flush=True)
            return found

        sizes = [measured(windows_in, wanted) for wanted in options.windows]
        record = {
            "cores": len(os.sched_getaffinity(0)),
            "load": round(os.getloadavg()[0], 1),
            "sizes": sizes,
            "lines": {
                stage: {key: fit(sizes, stage, key) for key in ("cpu", "mb")} for stage in STAGES
            },
        }
        if options.one_contig:
            record["one_contig"] = measured(one_contig, options.one_contig)
        if options.short_contigs:
            record["short_contigs"] = measured(short_contigs, options.short_contigs)
    (options.output / "scale.json").write_text(json.dumps(record, indent=1) + "\n")
    for key, unit in (("cpu", "seconds of a core"), ("mb", "MB of memory at the peak")):
        (options.output / f"{key}.svg").write_text(picture(sizes, key, unit))


if __name__ == "__main__":
    main()
