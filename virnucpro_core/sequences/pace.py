"""How fast a device embeds: how large a piece is by that, and how long a run takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from virnucpro_core.host import cores

TASK_SECONDS = 600
"""What an embed task should last: long beside its start-up of 10 to 20 s, short to lose."""

LONG = 3600
"""Seconds of a CPU from which on a user is warned."""

FLOPS = {
    "cpu": 5e11,
    "t4": 3e13,
    "v100": 6e13,
    "a100": 1.6e14,
    "l40s": 1.8e14,
    "h100": 6.1e14,
    "h200": 6.1e14,
}
"""Floating point operations a second that `embed` reaches on a device, file to file: measured on an
H100 (docs/benchmarks/two-h100.json); the other GPUs by their peaks, the CPU as 8 cores of the
slower of two processors (docs/benchmarks/cpu.json)."""

RELATIVE = {"fp32": 0.1, "fp8": 1.4}
"""How fast a GPU is in a precision, to fp16 and bf16."""

_CORES = 8

PARAMETERS = {"mini": 1.9e6}
"""Of both encoders; of a model that is not named here, those of the published ones."""

PUBLISHED_PARAMETERS = 2.96e9

MOST_TOKENS = 100_000.0
"""Tokens a second beyond which tokenising, writing and small operations set the pace."""


def _parameters(model: str) -> float:
    return PARAMETERS.get(model, PUBLISHED_PARAMETERS)


def _tokens_per_base(model: str) -> float:
    """Residues of stop-free frames that a base gives."""
    return 0.33 if model.endswith("-300") else 0.2


def about_bases(fasta: Iterable[Path]) -> int:
    """About how many bases files have, by their sizes: compressed ones four times theirs."""
    return sum(
        path.stat().st_size * (4 if path.suffix in (".gz", ".bz2", ".xz", ".zst") else 1)
        for path in fasta
        if path.exists()  # if not, reading refuses it
    )


def tokens_a_second(device: str, parameters: float, precision: str = "fp16") -> float:
    """What a device of a class embeds: two operations a token and parameter, if it is fed."""
    rate = FLOPS[device] * RELATIVE.get(precision, 1.0) / (2 * parameters)
    return min(rate, MOST_TOKENS)


def device_class(gpu: str) -> str | None:
    """The class in FLOPS of a GPU, by the name that CUDA gives it; None for one not listed."""
    known = (name for name in FLOPS if re.search(rf"{name}(?!\d)", gpu, re.IGNORECASE))
    return next(known, None)


def auto_shard_bp(fasta: Iterable[Path], model: str, device: str) -> int:
    """Bases of a piece on which `embed` works for about TASK_SECONDS on that class of device.

    A small input is cut finer, so that four tasks can share it, to a tenth of that at the least.
    Between 100 kb and 250 Mb.
    """
    rate = tokens_a_second(device, _parameters(model))
    target = TASK_SECONDS * rate / _tokens_per_base(model)
    return round(min(250e6, max(100e3, min(target, max(about_bases(fasta) / 4, target / 10)))))


def cpu_seconds(tokens: float, parameters: float) -> float:
    """About how long this process's cores take for so many tokens."""
    return tokens / tokens_a_second("cpu", parameters) * _CORES / cores()


def in_words(seconds: float) -> str:
    """A length of time as one says it: about 100 seconds, about 26 hours, about 3 days."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.0f} {unit}"
    return f"about {seconds:.0f} seconds"


def amount(pieces: Sequence[Path], model: str, device: str) -> str:
    """How much a sample's pieces are, and how long one device of a class embeds them."""
    bases = about_bases(pieces)
    tokens, parameters = bases * _tokens_per_base(model), _parameters(model)
    if device == "cpu":
        seconds = cpu_seconds(tokens, parameters)
    else:
        seconds = tokens / tokens_a_second(device, parameters)
    return f"{len(pieces)} pieces, {bases} bases, {seconds:.0f} s on one {device}"


def cpu_time(fasta: Iterable[Path], model: str) -> str:
    """A sentence on how long this machine's cores would embed these files."""
    tokens = about_bases(fasta) * _tokens_per_base(model)
    time = in_words(cpu_seconds(tokens, _parameters(model)))
    known = model in PARAMETERS or model.startswith("virnucpro-")
    size = model if known else "a model as large as the published ones"
    return f"With {size}, {cores()} CPU cores take {time} to embed it."
