"""`virnucpro benchmark`: every figure with its bar, in one run on one machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from virnucpro_core.errors import InputError
from virnucpro_core.lab.benchmark.cpu import cpu_speed
from virnucpro_core.lab.benchmark.devices import several_devices
from virnucpro_core.lab.benchmark.encoders import (
    accuracy,
    budgets,
    dnabert_s_share,
    esm2_speed,
    peers,
)
from virnucpro_core.lab.benchmark.endtoend import end_to_end
from virnucpro_core.lab.benchmark.lines import PUBLISHED_SIZE, SMALL_SIZE, Line, Size
from virnucpro_core.lab.benchmark.plot import plot
from virnucpro_core.lab.machine import machine

SECTIONS: dict[str, Callable[[Size, torch.device], Iterator[Line]]] = {
    "esm2": esm2_speed,
    "budgets": budgets,
    "dnabert_s": dnabert_s_share,
    "accuracy": accuracy,
    "peers": peers,
    "cpu": cpu_speed,
    "embed": end_to_end,
    "devices": several_devices,
}


def benchmark(
    folder: Path | None = None,
    *,
    devices: Sequence[torch.device],
    size: Size | None = None,
    sections: Sequence[str] | None = None,
    tables: Sequence[Path] = (),
    show: Callable[[str], object] = print,
) -> list[Line]:
    """Run sections (default: all) and show each line as it is known; FAIL where its bar is missed.

    devices: all but the section `devices` use the first. size defaults to the published sizes on a
    GPU and small ones on a CPU. tables: frame tables whose lengths ESM-2 is timed on too. `folder`
    gets benchmark.json and benchmark.svg. Raises InputError for an unknown section, and for
    `devices` with one alone.
    """
    for section in sections or ():
        if section not in SECTIONS:
            raise InputError(f"section {section!r} is not known; choose of {', '.join(SECTIONS)}.")
        if section == "devices" and len(devices) < 2:
            raise InputError("section devices needs several; name them: --device cuda:0,cuda:1.")
    device = devices[0]
    size = size or (PUBLISHED_SIZE if device.type == "cuda" else SMALL_SIZE)
    size = replace(size, tables=tuple(map(str, tables)), devices=tuple(map(str, devices)))
    about = machine(device)
    show(", ".join(f"{key} {value}" for key, value in about.items()))
    lines = []
    for section in sections or SECTIONS:
        with torch.inference_mode():
            for line in SECTIONS[section](size, device):
                show(str(line))
                lines.append(line)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{**asdict(line), "verdict": line.verdict} for line in lines]
        record = {"machine": about, "size": asdict(size), "lines": rows}
        text = json.dumps(record, indent=2, ensure_ascii=False)
        (folder / "benchmark.json").write_text(text + "\n")
        (folder / "benchmark.svg").write_text(plot(lines, about))
    return lines
