"""`virnucpro profile`: where the time of one `embed` run goes, from file to file."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

import numpy as np
import torch

from virnucpro_core.embedding.encoders import FrameEncoder
from virnucpro_core.embedding.engine import Job, begin, finish, origin_of, run_schedule
from virnucpro_core.embedding.schedule import Batch, Schedule, protein_tokens
from virnucpro_core.embedding.timing import Stages
from virnucpro_core.models.store import Model
from virnucpro_core.parquet import frame_meta

FAMILIES = {
    "copy in": "memcpy htod",
    "copy out": "memcpy dtoh",
    "gemm": "gemm|cutlass|nvjet|xmma|cublas",
    "attention": "attention|flash|fmha",
    "norm": "norm",
    "gelu": "gelu",
    "pooling": "segment",
}
"""Kernel families, by what the kernels' names contain; the rest is `other kernels`."""


def _family(kernel: str) -> str:
    name = kernel.lower()
    matching = (family for family, pattern in FAMILIES.items() if re.search(pattern, name))
    return next(matching, "other kernels")


def _shared_out(intervals: list[tuple[float, float, str]]) -> dict[str, float]:
    """Seconds of each family; an instant that several cover is shared out among them."""
    events = sorted(
        event
        for first, last, family in intervals
        for event in ((first, 1, family), (last, -1, family))
    )
    seconds: dict[str, float] = {}
    active: Counter[str] = Counter()
    before = 0.0
    for now, change, family in events:
        if running := active.total():
            for one, count in active.items():
                seconds[one] = seconds.get(one, 0.0) + (now - before) * count / running
        active[family] += change
        if not active[family]:
            del active[family]
        before = now
    return seconds


def _kernels(profiler: torch.profiler.profile) -> dict[str, Any]:
    """Seconds of each kernel family, and the share of time that the GPU was busy."""
    intervals = []
    for event in profiler.events() or []:  # type: ignore[no-untyped-call]
        if event.device_type.name == "CUDA" and event.time_range.elapsed_us() > 0:
            span = event.time_range
            intervals.append((span.start / 1e6, span.end / 1e6, _family(event.name)))
    if not intervals:
        return {}
    seconds = _shared_out(intervals)
    busy = sum(seconds.values())
    whole = max(last for _, last, _ in intervals) - min(first for first, _, _ in intervals)
    return {"kernels": seconds, "idle": max(0.0, whole - busy), "busy": busy / whole}


def profile(frames: Path, model: Model, device: torch.device, precision: str) -> dict[str, Any]:
    """Embed a table once with the input in memory and once from file to file, timed.

    Returns tokens, frames and seconds of both runs, seconds of each stage and, on a GPU, of each
    kernel family, what was idle, and the share of time after the first kernel that the GPU was
    busy. What runs side by side shares its time, so the stages with "none of these" add up to the
    run, and the families with "idle" to the time from the first kernel to the last.
    """
    meta = frame_meta(frames)
    encoder = FrameEncoder(model, device, precision)
    lengths = protein_tokens(frames)
    schedule = Schedule(lengths, np.zeros(len(lengths), np.bool_), encoder.token_budget(), 0, 1)

    def batches() -> Iterator[Batch]:
        return schedule.batches(frames, encoder.tokenize, Stages())

    ready = list(batches())
    for _ in encoder.embed(ready[:: max(1, len(ready) // 4)], Stages()):
        pass  # warm: kernels of all lengths are compiled
    start = time.perf_counter()
    for _ in encoder.embed(ready, Stages()):
        pass
    model_only = time.perf_counter() - start

    profiler: AbstractContextManager[Any] = nullcontext()
    if device.type == "cuda":
        profiler = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True
        )
    with TemporaryDirectory(dir=frames.parent) as folder:
        place = Path(folder) / "work"
        with profiler as recorded:
            stages = Stages()
            start = time.perf_counter()
            with stages("begin"):
                begin(place, frames, meta, origin_of(model, precision), model.dim)
            job = Job(frames, model, precision, None, place)
            run_schedule(encoder, schedule, job, 0, stages, Event())
            with stages("finish"):
                finish(place, Path(folder) / "shard.h5", meta.rows)
            file_to_file = time.perf_counter() - start  # the profiler's own end takes seconds
    tokens = int(lengths.sum())
    return {
        "device": str(device),
        "precision": precision,
        "frames": meta.rows,
        "tokens": {
            "protein": tokens,
            "nucleotide": sum(len(batch.nucleotide.ids) for batch in ready),
        },
        "model only": {"seconds": model_only, "tokens_per_second": tokens / model_only},
        "file to file": {"seconds": file_to_file, "tokens_per_second": tokens / file_to_file},
        "file to file / model only": model_only / file_to_file,
        "stages": stages.seconds,
        **(_kernels(recorded) if recorded is not None else {}),
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The result as a table: seconds and share of the run from file to file."""
    whole = result["file to file"]["seconds"]
    for run in ("model only", "file to file"):
        seconds, speed = result[run].values()
        yield f"{run:<20} {seconds:>9.2f} s {speed:>10,.0f} protein tokens/s"
    yield f"{'share of model only':<20} {result['file to file / model only']:>9.3f}"
    stages = result["stages"]
    parts = {**stages, "none of these": max(0.0, whole - sum(stages.values()))}
    yield "the run by stages, which share the time that they overlap:"
    yield from _shares(parts)
    if "idle" in result:
        yield f"the GPU from its first kernel to its last, {result['busy']:.1%} busy:"
        yield from _shares({**result["kernels"], "idle": result["idle"]})


def _shares(parts: dict[str, float]) -> Iterator[str]:
    whole = sum(parts.values())
    for part, seconds in parts.items():
        yield f"{part:<20} {seconds:>9.2f} s {seconds / whole:>9.1%}"
