"""What fp8 loses and wins with first layers in bfloat16: `python benchmarks/fp8.py -o FOLDER`.

Random weights of the published size with outlier dimensions. Accuracy: 65 proteins against float32,
as `virnucpro benchmark` takes it; speed: batches of 166 residues, to bf16's GEMM chain in turn.
"""

from __future__ import annotations

import argparse
import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from virnucpro_core.lab.benchmark import encoders as bench
from virnucpro_core.lab.benchmark.lines import PUBLISHED_SIZE
from virnucpro_core.lab.machine import machine
from virnucpro_core.models.esm2 import ESM2

KEPT = ((0, 0), (2, 0), (2, 2), (4, 2), (6, 2), (9, 2), (6, 4), (9, 4), (12, 6), (18, 12))
"""First layers whose qkv, and whose feed-forward, stay in bfloat16."""


def frontier(device: torch.device) -> list[dict[str, Any]]:
    """A row for each of KEPT."""
    size = PUBLISHED_SIZE
    source = bench.build(lambda: ESM2(*size.esm2), device, torch.float32)
    bench.add_outliers(source)
    proteins = bench.some_proteins(size)
    expected = source.embed_tokens_packed(proteins)
    source = source.bfloat16()
    work = bench.protein_batches(size, [166], 2)
    gemms = bench.chain(source, bench.ESM2_GEMMS, bench.tokens_in(work) // len(work))
    rows = []
    for kept in KEPT:
        model = copy.deepcopy(source).to_fp8(kept)
        relative, cosine = bench.compared(model.embed_tokens_packed(proteins), expected)
        runs: dict[str, bench.Run] = {
            "chain": partial(bench.repeated, gemms, len(work)),
            "model": bench.through(model, work),
        }
        seconds = bench.timed(runs, size.repeats)
        row = {
            "qkv": kept[0],
            "feed_forward": kept[1],
            "least_cosine": round(cosine, 6),
            "relative_difference": round(relative, 4),
            "speed": round(seconds["chain"] / seconds["model"], 4),
        }
        print(row, flush=True)
        rows.append(row)
    return rows


def plot(rows: list[dict[str, Any]]) -> str:
    """Cosine over speed, a point a row, as an SVG."""
    width, height, left, bottom = 640, 420, 70, 50
    speeds = [row["speed"] for row in rows]
    losses = [1e3 * (1 - row["least_cosine"]) for row in rows]
    low, high, most = min(speeds) - 0.02, max(speeds) + 0.05, 1.1 * max(*losses, 1)

    def at(speed: float, loss: float) -> tuple[float, float]:
        return left + (width - left - 20) * (speed - low) / (high - low), 20 + (
            height - bottom - 20
        ) * loss / most

    parts = []
    for row, speed, loss in zip(rows, speeds, losses, strict=True):
        x, y = at(speed, loss)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#2a7f62"/>'
            f'<text x="{x + 7:.1f}" y="{y + 4:.1f}">{row["qkv"]}, {row["feed_forward"]}</text>'
        )
    for tenth in range(int(10 * low) + 1, int(10 * high) + 1):
        x, _ = at(tenth / 10, 0)
        parts.append(
            f'<text x="{x:.1f}" y="{height - 30}" text-anchor="middle">{tenth / 10}</text>'
        )
    for loss in range(int(most) + 1):
        _, y = at(low, loss)
        parts.append(
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{1 - loss / 1e3:.3f}</text>'
        )
    _, bar = at(low, 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'{"".join(parts)}<line x1="{left}" x2="{width - 20}" y1="{bar:.1f}" y2="{bar:.1f}" '
        f'stroke="black" stroke-dasharray="4 3"/><text x="{width / 2}" y="{height - 10}" '
        'text-anchor="middle">speed, times bf16\'s GEMM chain</text><text x="8" y="14">least '
        "cosine to fp32; labels: first layers with qkv, with feed-forward in bf16</text></svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", dest="folder", type=Path, required=True)
    options = parser.parse_args()
    device = torch.device("cuda")
    with torch.inference_mode():
        rows = frontier(device)
    options.folder.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine(device), "rows": rows}
    (options.folder / "fp8.json").write_text(json.dumps(record, indent=2) + "\n")
    (options.folder / "fp8.svg").write_text(plot(rows))


if __name__ == "__main__":
    main()
