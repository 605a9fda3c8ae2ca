"""The part of `virnucpro benchmark` on several devices: `embed` on the first, then on all of them.

Start-up is up to the first batch, work from there to the end of the last worker, and the tail is
what comes after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import torch

from virnucpro_core.lab.benchmark.endtoend import (
    WINDOW,
    embed_command,
    write_frames,
    write_random_model,
)
from virnucpro_core.lab.benchmark.lines import PUBLISHED_SIZE, Line, Size
from virnucpro_core.parquet import frame_meta


def several_devices(size: Size, device: torch.device) -> Iterator[Line]:
    """Lines on `embed` with one and with all devices; nothing where there is one.

    The frames are those of the first table that has windows of 500, else made up.
    """
    count = len(size.devices)
    if count < 2:
        return
    large = size.esm2 == PUBLISHED_SIZE.esm2
    with TemporaryDirectory() as name:
        folder = Path(name)
        model = write_random_model(folder / "models" / "random", size, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        few = folder / "few.parquet"
        write_frames(few, 50)
        embed_command(few, folder / "few.h5", model, str(device))  # kernels are compiled
        tables = [Path(table) for table in size.tables]
        frames = next((one for one in tables if frame_meta(one).window == WINDOW), None)
        if frames is None:
            frames = folder / "many.parquet"
            write_frames(frames, 40_000 if large else 100)
        yield Line("devices: frames", frame_meta(frames).rows, "")
        shards = [folder / "one.h5", folder / "all.h5"]
        whole, work, start = [], [], []
        for shard, names in zip(shards, (str(device), ",".join(size.devices)), strict=True):
            run = embed_command(frames, shard, model, names)
            start.append(run.first[0])
            work.append(max(run.last) - run.first[0])
            whole.append(run.whole)
            yield Line(f"{names}: start to first batch", start[-1], "s")
            if len(run.first) > 1:
                yield Line(f"{names}: start to the last one's first", run.first[-1], "s")
            yield Line(f"{names}: work", work[-1], "s")
            yield Line(f"{names}: tail", run.whole - max(run.last), "s")
            yield Line(f"{names}: whole command", run.whole, "s")
        gpu = device.type == "cuda"
        apart = (max(run.last) - min(run.last)) / work[-1]
        bars = (0.995 * count, 0.975 * count, 1.2, 0.01) if gpu else (None,) * 4
        yield Line("devices: work, all to one", work[0] / work[1], "times", bars[0])
        yield Line("devices: whole command, all to one", whole[0] / whole[1], "times", bars[1])
        yield Line("devices: start-up, all to one", start[1] / start[0], "times", bars[2], True)
        yield Line("devices: workers' ends apart", apart, "of work", bars[3], True)
        yield Line("devices: values, relative difference", _apart(*shards), "", 1e-3, True)


def _apart(one: Path, other: Path) -> float:
    """How far the values of two shards are apart; infinitely if their rows are of other frames."""
    with h5py.File(one) as a, h5py.File(other) as b:
        if (a["frame_id"][:] != b["frame_id"][:]).any():
            return float("inf")
        x, y = a["embedding"][:], b["embedding"][:]
    return float(np.linalg.norm(x - y) / np.linalg.norm(x))
