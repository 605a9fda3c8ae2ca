"""What a run will take: time, memory and disk, said before it starts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from virnucpro_core.embedding.devices import default_precision
from virnucpro_core.embedding.encoders import CPU_TOKENS, GPU_TOKENS, FrameEncoder
from virnucpro_core.embedding.schedule import protein_tokens
from virnucpro_core.host import cores, free_disk, in_bytes, memory
from virnucpro_core.models.layout import read_encoder
from virnucpro_core.models.precision import PRECISIONS, has_fp8
from virnucpro_core.models.store import Model
from virnucpro_core.parquet import inventory_batches
from virnucpro_core.sequences.pace import (
    LONG,
    cpu_seconds,
    device_class,
    in_words,
    tokens_a_second,
)
from virnucpro_core.sequences.tokens import ESM_SPECIAL_TOKENS
from virnucpro_core.sequences.windows import window_counts

START_UP = {"cpu": 3.0, "gpu": 12.0}
"""Seconds from the start of a process to its first batch (docs/benchmarks/two-h100.json)."""

BASES_A_SECOND = 3e6
"""Of split, translate, merge, classify and report together, on one core."""

LIBRARIES = 9e8
"""Bytes of a process's memory before it has a model."""

CONTEXT = 5e8
"""Bytes that CUDA and cuBLAS take of a GPU."""

PROBED = 3e7
"""Parameters of a model up to which a CPU's speed is measured, in a second; else by a table."""

WORTH_IT = 100 * CPU_TOKENS
"""Tokens a core from which on that is a small part of the run."""

RESIDUES = 160
"""Of a made-up frame, about as many as a window of 500 gives."""

BUSY = 1.5
"""How many times as long a run of less than an hour takes beside a load that is told."""


class Amount(NamedTuple):
    """Counts of an input. tokens: ESM-2's, of all frames.

    exact: frames and tokens were counted, not scaled up from a sample.
    """

    contigs: int
    bases: int
    windows: int
    frames: int
    tokens: int
    exact: bool

    def __str__(self) -> str:
        about = "" if self.exact else "about "
        return (
            f"{self.contigs:,} contigs, {self.bases:,} bases, {self.windows:,} windows; "
            f"{about}{self.frames:,} frames, {about}{self.tokens:,} tokens"
        )


class Sizes(NamedTuple):
    """What of a model decides what it takes. width: values of a token within its ESM-2.

    runs: as of `stop_free_frames`. model: where it is at hand.
    """

    name: str
    window: int
    dim: int
    parameters: float
    width: int
    runs: bool = False
    model: Model | None = None


def sizes_of(model: Model) -> Sizes:
    """Read off the weights, which are mapped; ModelError when they are damaged."""
    parts = read_encoder(model.nucleotide, "dnabert_s"), read_encoder(model.protein, "esm2")
    parameters = sum(tensor.numel() for part in parts for tensor in part.state.values())
    width = parts[1].matrix("embedding.weight")[1]
    runs = model.rule is not None
    return Sizes(model.name, model.window, model.dim, parameters, width, runs, model)


class Cost(NamedTuple):
    """What a run takes on some device. seconds: of all of it, None where that is not known.

    memory: bytes, the GPU's or the host's; of: how many there are, where that is known. busy: how
    many times as long it takes beside what the machine's cores do already.
    """

    device: str
    precision: str
    seconds: float | None
    memory: float
    of: int | None
    busy: float = 1.0

    def __str__(self) -> str:
        time = "it is not known how long"
        if self.seconds is not None:
            time = in_words(self.seconds)
            if self.busy > BUSY and self.seconds < LONG:
                time += f", {in_words(self.busy * self.seconds)} as busy as the cores are now"
        of = "" if self.of is None else f" of {in_bytes(self.of)}"
        return f"{self.device} in {self.precision}: {time}; {in_bytes(self.memory)}{of} of memory"


@dataclass(frozen=True)
class Estimate:
    """Of a run: its work, what it takes on this machine's devices, and the bytes of disk at its
    peak and at its end.
    """

    amount: Amount
    sizes: Sizes
    here: Cost
    peak: float
    results: float
    output: Path

    def lines(self) -> Iterator[str]:
        """As a person reads it."""
        yield f"{self.amount} with {self.sizes.name}"
        yield f"here, {self.here}"
        room = f"{in_bytes(self.peak)} of disk while it runs, {in_bytes(self.results)} of results"
        yield f"{room}; {in_bytes(free_disk(self.output))} free in {self.output}"


def amount_in(contigs: Path, frames: Path, window: int) -> Amount:
    """Counts of what `split` and `translate` wrote."""
    batches = inventory_batches(contigs, ["length"])
    lengths = np.concatenate([batch["length"].to_numpy() for batch in batches])
    windows = int(window_counts(lengths, window).sum())
    tokens = protein_tokens(frames)
    counts = len(lengths), int(lengths.sum()), windows, len(tokens), int(tokens.sum())
    return Amount(*counts, exact=True)


def estimate(
    amount: Amount,
    sizes: Sizes,
    places: Sequence[torch.device],
    output: Path,
    *,
    precision: str | None = None,
) -> Estimate:
    """What a run of that much work takes on these devices.

    The speed of a GPU is that of its class in `pace.FLOPS`; that of the CPU is measured, where the
    model is small and there is enough to do for it.
    """
    chosen = precision or default_precision(places[0])
    if chosen == "fp8" and not has_fp8(places[0]):
        chosen = default_precision(places[0])
    if places[0].type == "cpu":
        here = _on_cpu(amount, sizes, chosen)
    else:
        seen = [torch.cuda.get_device_properties(place) for place in places]
        name = f"{len(places)} × {seen[0].name}" if len(places) > 1 else seen[0].name
        here = on_gpu(amount, sizes, name, chosen, len(places), seen[0].total_memory)
    table = 1.5 * amount.tokens  # nucleotides and proteins, compressed
    shard = amount.frames * (4 * sizes.dim + 60)
    lines = 60 * amount.frames + 90 * amount.windows + 60 * amount.contigs
    results = 5e5 + table + amount.bases / 3 + lines
    peak = amount.bases + table + shard + results
    return Estimate(amount, sizes, here, peak, results, output)


def cpu_tokens_a_second(model: Model, precision: str) -> float:
    """ESM-2 tokens a second that both encoders would embed on all cores, if nothing else ran.

    One batch is timed on one core, by its CPU time, which the load of the machine does not change.
    """
    encoder = FrameEncoder(model, torch.device("cpu"), precision)
    rng = np.random.default_rng(0)
    frames = CPU_TOKENS // (RESIDUES + ESM_SPECIAL_TOKENS)
    nucleotides, proteins = (
        ["".join(rng.choice(list(letters), length)) for _ in range(frames)]
        for letters, length in (("ACGT", 3 * RESIDUES + 1), ("LAGVSERTIDPKQNFYMHWC", RESIDUES))
    )
    encoder.embed_frames(nucleotides[:1], proteins[:1])  # what the first batch alone costs
    start = time.process_time()
    encoder.embed_frames(nucleotides, proteins)
    seconds = time.process_time() - start
    return torch.get_num_threads() * frames * (RESIDUES + ESM_SPECIAL_TOKENS) / seconds


def _on_cpu(amount: Amount, sizes: Sizes, precision: str) -> Cost:
    seconds = cpu_seconds(amount.tokens, sizes.parameters)
    worth_it = sizes.parameters <= PROBED and amount.tokens >= WORTH_IT * cores()
    if sizes.model is not None and worth_it:
        seconds = amount.tokens / cpu_tokens_a_second(sizes.model, precision)
    size = PRECISIONS[precision].itemsize
    activations = torch.get_num_threads() * CPU_TOKENS * 16 * sizes.width * size
    return Cost(
        f"{cores()} CPU cores",
        precision,
        START_UP["cpu"] + amount.bases / BASES_A_SECOND + seconds,
        LIBRARIES + sizes.parameters * size + activations,
        memory(),
        max(1.0, (os.getloadavg()[0] + cores()) / (os.cpu_count() or 1)),
    )


def on_gpu(
    amount: Amount, sizes: Sizes, name: str, precision: str, gpus: int = 1, total: int | None = None
) -> Cost:
    """On so many GPUs, each with `total` bytes of memory; their name tells of which class."""
    known, seconds = device_class(name), None
    if known is not None:
        rate = gpus * tokens_a_second(known, sizes.parameters, precision)
        seconds = START_UP["gpu"] + amount.bases / BASES_A_SECOND + amount.tokens / rate
    size = 1 if precision == "fp8" else PRECISIONS[precision].itemsize
    activations = GPU_TOKENS * 16 * sizes.width * PRECISIONS[precision].itemsize
    return Cost(name, precision, seconds, CONTEXT + sizes.parameters * size + activations, total)
