"""Both encoders on one core of a CPU, against the GEMMs and against torch as it comes.

Times are of the processor, so that a busy machine changes little. Weights are random.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
import torch

from virnucpro_core.embedding.encoders import CPU_TOKENS
from virnucpro_core.lab.benchmark.encoders import (
    DNABERT_GEMMS,
    ESM2_GEMMS,
    batches,
    build,
    chain,
    timed,
)
from virnucpro_core.lab.benchmark.lines import Line, Size
from virnucpro_core.models.dnabert_s import DNABERTS
from virnucpro_core.models.esm2 import ESM2

SIZES = {
    "mini": ((3, 128, 4), (1024, 3, 192, 6, 384)),
    "two layers of 650M": ((2, 1280, 20), (4096, 2, 768, 12, 3072)),
}
"""ESM-2's layers, dim and heads; DNABERT-S's vocabulary, layers, dim, heads and inner width."""

PLAIN = {"VIRNUCPRO_KERNELS": "torch", "VIRNUCPRO_ATTENTION": "padded"}


def cpu_speed(size: Size, device: torch.device) -> Iterator[Line]:
    """Frames/s of a core on windows of 500 bases, in float32 and bfloat16."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, shapes in SIZES.items():
            for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
                yield from _speed(f"{name}, {precision}", shapes, dtype, size.repeats)
    finally:
        torch.set_num_threads(threads)


def _speed(
    name: str,
    shapes: tuple[tuple[int, int, int], tuple[int, int, int, int, int]],
    dtype: torch.dtype,
    repeats: int,
) -> Iterator[Line]:
    cpu = torch.device("cpu")
    esm2, dnabert = (
        build(lambda: ESM2(*shapes[0]), cpu, dtype),
        build(lambda: DNABERTS(*shapes[1]), cpu, dtype),
    )
    frames = CPU_TOKENS // 168
    (proteins,) = batches([168] * frames, CPU_TOKENS, 24)
    lengths = np.random.default_rng(0).integers(92, 113, frames)  # byte pairs are unlike
    (bases,) = batches(lengths.tolist(), CPU_TOKENS, shapes[1][0])
    gemms = (
        chain(esm2, ESM2_GEMMS, len(proteins.ids)),
        chain(dnabert, DNABERT_GEMMS, len(bases.ids)),
    )

    def model() -> None:
        dnabert.embed_tokens_packed(bases)
        esm2.embed_tokens_packed(proteins)

    def plain() -> None:
        os.environ |= PLAIN
        model()
        for switch in PLAIN:
            del os.environ[switch]

    def both() -> None:
        for run in gemms:
            run()

    runs = {"chain": both, "model": model, "plain": plain}
    seconds = timed(runs, repeats, time.process_time)
    yield Line(f"{name}: GEMM chain", frames / seconds["chain"], "frames/s")
    yield Line(f"{name}: a core", frames / seconds["model"], "frames/s")
    yield Line(f"{name}: share of the chain", seconds["chain"] / seconds["model"], "")
    yield Line(f"{name}: to torch as it comes", seconds["plain"] / seconds["model"], "times")
