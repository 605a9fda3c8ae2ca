"""What `embed` asks of its host: reading, tokenising, packing, writing, and what comes at the end.

    python benchmarks/host.py contigs.fa.gz --workers 8 --frames 100000 -o host.json

Workers run as `embed` runs them, but for a model that gives made-up embeddings of the published
width as fast as it is fed, or at --pace frames a second each, as a GPU would. Contigs are repeated
until they give enough frames.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any, cast

import numpy as np
import torch
from translate import replicate

from virnucpro_core.embedding.encoders import GPU_TOKENS, Embedded, FrameEncoder
from virnucpro_core.embedding.engine import (
    Job,
    begin,
    finish,
    origin_of,
    run_schedule,
    used,
)
from virnucpro_core.embedding.schedule import Batch, Schedule, protein_tokens
from virnucpro_core.embedding.shards import EmbeddingFile
from virnucpro_core.embedding.timing import Stages
from virnucpro_core.embedding.workers import run_ranks
from virnucpro_core.models.attention import Layout
from virnucpro_core.models.dnabert_s import load_dnabert_s
from virnucpro_core.models.store import Model, resolve_model
from virnucpro_core.parquet import frame_meta
from virnucpro_core.sequences.tokens import Tokens, esm_tokens
from virnucpro_core.sequences.translate import translate

DIM = 3328
"""Values of a frame's embedding by the published models."""


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


def say(record: dict[str, Any], output: Path | None) -> None:
    """Print a record, and keep it where that was asked for."""
    text = json.dumps(record, indent=2)
    print(text)
    if output:
        output.write_text(text + "\n")


class Hollow:
    """In a `FrameEncoder`'s place: tokenises and packs as that does, and computes nothing.

    pace: frames a second, as many as come where it is 0.
    """

    def __init__(self, model: Model, pace: float) -> None:
        self._nucleotide, self._pace = load_dnabert_s(model.nucleotide), pace
        self.last = 0.0
        """When the last batch was done, so far."""
        self._values = np.random.default_rng(0).standard_normal((1024, DIM), np.float32)

    def tokenize(self, bases: Sequence[str], residues: Sequence[str]) -> tuple[Tokens, Tokens]:
        return self._nucleotide.tokenize(bases), esm_tokens(residues)

    def embed(self, batches: Iterable[Batch], stages: Stages) -> Iterator[Embedded]:
        due = time.perf_counter()
        for batch in batches:
            with stages("pack"):
                for tokens in (batch.nucleotide, batch.protein):
                    Layout.of(torch.from_numpy(tokens.lengths), torch.device("cpu"))
            rows = len(batch.rows)
            if self._pace:
                due = max(due, time.perf_counter()) + rows / self._pace
                with stages("wait for the GPU"):
                    time.sleep(max(0.0, due - time.perf_counter()))
            self.last = time.time()
            yield batch.rows, self._values.take(np.arange(rows), 0, mode="wrap")


def work(task: tuple[Job, float], device: str, rank: int, world: int, stop: Event) -> None:
    """One worker: what it spent goes into `used<rank>.json`, beside what `embed` says there."""
    job, pace = task
    torch.set_num_threads(1)
    stages, encoder = Stages(), Hollow(job.model, pace)
    schedule = Schedule(protein_tokens(job.frames), job.done, GPU_TOKENS, rank, world)
    begun, before = time.time(), _cpu()
    run_schedule(cast(FrameEncoder, encoder), schedule, job, rank, stages, stop)
    spent = {
        "begun": begun,
        "last": encoder.last,
        "written": time.time(),
        "cpu": _cpu() - before,
        "stages": stages.seconds,
    }
    (job.folder.parent / f"spent{rank}.json").write_text(json.dumps(spent))
    (job.folder / f"used{rank}.json").write_text(json.dumps(used(device, job.precision)))


def _cpu() -> float:
    now = resource.getrusage(resource.RUSAGE_SELF)
    return now.ru_utime + now.ru_stime


def measure(frames: Path, model: Model, folder: Path, workers: int, pace: float) -> dict[str, Any]:
    """One run of so many workers, and its parts in seconds."""
    output, place = folder / "out.h5", folder / "work"
    meta = frame_meta(frames)
    origin = origin_of(model, "fp32")
    place.mkdir()
    begin(place, frames, meta, origin, DIM)
    job = Job(frames, model, "fp32", None, place)
    start = time.time()
    run_ranks(work, (job, pace), ["cpu"] * workers, output)
    ended = time.time()
    finish(place, output, meta.rows)
    whole = time.time()
    assert EmbeddingFile(output).rows == meta.rows
    spent = [json.loads(path.read_text()) for path in sorted(folder.glob("spent*.json"))]
    last, written = (max(one[key] for one in spent) for key in ("last", "written"))
    stages = Counter[str]()
    for one in spent:
        stages.update(one["stages"])
    return {
        "workers": workers,
        "frames_a_second_asked_of_each": pace or "as many as come",
        "frames": meta.rows,
        "frames_a_second": round(meta.rows / (last - min(one["begun"] for one in spent))),
        "cpu_seconds_of_1000_frames": round(1000 * sum(one["cpu"] for one in spent) / meta.rows, 3),
        "seconds": {stage: round(seconds, 2) for stage, seconds in stages.items()},
        "at_work_after": [round(one["begun"] - start, 2) for one in spent],
        "after_the_last_batch": {
            "rows_written": round(written - last, 3),
            "workers_ended": round(ended - written, 3),
            "sealed": round(whole - ended, 3),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contigs", type=Path)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--pace", type=float, default=0.0)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with TemporaryDirectory(dir=options.output.parent if options.output else None) as name:
        folder = Path(name)
        frames = write_frames(options.contigs, folder, options.frames, 500)
        found = measure(frames, resolve_model("mini"), folder, options.workers, options.pace)
    record = {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0], **found}
    say(record, options.output)


if __name__ == "__main__":
    main()
