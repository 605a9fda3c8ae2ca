"""The part of `virnucpro benchmark` that runs `embed` itself: overlap and start-up.

It writes a model of the benchmark's sizes with random weights to disk, makes up frames, and embeds
them by the code and the command that users run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch

from virnucpro_core.embedding.devices import default_precision
from virnucpro_core.embedding.schedule import protein_tokens
from virnucpro_core.errors import VirNucProError
from virnucpro_core.lab.augment import train_tokenizer
from virnucpro_core.lab.benchmark.encoders import build
from virnucpro_core.lab.benchmark.lines import PUBLISHED_SIZE, Line, Size
from virnucpro_core.lab.export import write_modules
from virnucpro_core.lab.profiling import profile
from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.models.dnabert_s import DNABERTS
from virnucpro_core.models.esm2 import ESM2
from virnucpro_core.models.store import Model
from virnucpro_core.parquet import frame_meta
from virnucpro_core.sequences.translate import translate

CORES = 8
WINDOW = 500
CODONS = [a + b + c for a in "ACGT" for b in "ACGT" for c in "ACGT"]
STOPS = {"TAA", "TAG", "TGA"}

FIRST = re.compile(r"virnucpro\.embed: first batch ")
LAST = re.compile(r"virnucpro\.embed: \S+: [\d.]+ s: load")
"""What a worker says with its first batch, and at its end."""


def write_random_model(folder: Path, size: Size, device: torch.device) -> Model:
    """A complete model folder with random weights of the given sizes."""
    half = torch.float16
    esm2 = build(lambda: ESM2(*size.esm2), device, half)
    dnabert = build(lambda: DNABERTS(*size.dnabert_s), device, half)
    rng = np.random.default_rng(0)
    text = ["".join(rng.choice(list("ACGT"), 500)) for _ in range(300)]
    return write_modules(
        folder,
        WINDOW,
        dnabert_s=dnabert,
        esm2=esm2,
        classifier=MLPClassifier(esm2.dim + dnabert.dim, 16),
        tokenizer=train_tokenizer(text, size.dnabert_s[0]).to_str(),
    )


def write_frames(path: Path, frames: int) -> None:
    """A frame table of about as many frames, 50 to 166 residues long as contigs give them."""
    rng = np.random.default_rng(1)
    open_codons = [codon for codon in CODONS if codon not in STOPS]
    fasta = path.with_suffix(".fasta")
    with fasta.open("w") as handle:
        for n in range(frames):
            codons = int(rng.integers(50, 167)) if n % 4 == 0 else 166
            handle.write(f">c{n}\n{''.join(rng.choice(open_codons, codons))}\n")
    translate([fasta], path, WINDOW)


class Embedded(NamedTuple):
    """Seconds from the start of a command to each worker's first batch, each one's end, its own."""

    first: list[float]
    last: list[float]
    whole: float


def embed_command(
    frames: Path, output: Path, model: Model, devices: str, cache: Path | None = None
) -> Embedded:
    """Time `virnucpro embed`; VirNucProError when it fails. cache: Triton's folder of kernels."""
    command = [sys.executable, "-m", "virnucpro_core.cli", "-v", "embed", str(frames)]
    options = ["-o", str(output), "--model", model.name, "--models-dir", str(model.folder.parent)]
    own = {"TRITON_CACHE_DIR": str(cache)} if cache else {}
    start = time.perf_counter()
    first: list[float] = []
    last: list[float] = []
    said: list[str] = []
    with subprocess.Popen(
        [*command, *options, "--devices", devices],
        env={**os.environ, **own},
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        for line in run.stderr or ():
            said.append(line)
            for pattern, times in ((FIRST, first), (LAST, last)):
                if pattern.search(line):
                    times.append(time.perf_counter() - start)
    whole = time.perf_counter() - start
    if run.returncode:
        raise VirNucProError(f"embed failed: {''.join(said).strip()[-2000:]}")
    return Embedded(first, last, whole)


def end_to_end(size: Size, device: torch.device) -> Iterator[Line]:
    """Lines on `embed` from file to file, and on its start; on at most 8 cores."""
    gpu, large = device.type == "cuda", size.esm2 == PUBLISHED_SIZE.esm2
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    with TemporaryDirectory() as name:
        folder = Path(name)
        model = write_random_model(folder / "models" / "random", size, device)
        if gpu:
            torch.cuda.empty_cache()
        few = folder / "few.parquet"
        write_frames(few, 1000 if large else 50)
        for state, bar in (("cold", 90), ("warm", 20)):
            output = folder / f"{state}.h5"
            (begun,), _, whole = embed_command(few, output, model, str(device), folder / "triton")
            name = f"start to first batch, kernel cache {state}"
            yield Line(name, begun, "s", bar if gpu else None, at_most=True)
        write_frames(folder / "many.parquet", 9000 if large else 100)
        found = profile(folder / "many.parquet", model, device, default_precision(device))
        for run in ("model only", "file to file"):
            yield Line(f"embed, {run}", found[run]["tokens_per_second"], "tokens/s")
        due = protein_tokens(few).sum() / found["file to file"]["tokens_per_second"]
        name = f"embed {frame_meta(few).rows} frames, whole command past the warm start"
        yield Line(name, whole - begun, "s", due if gpu else None, at_most=True)
        share = found["file to file / model only"]
        yield Line("embed: file to file, share of model only", share, "", 0.90 if gpu else None)
        if gpu:
            yield Line("embed: share of time that the GPU is busy", found["busy"], "", 0.97)
        for part, seconds in {**found["stages"], **found.get("kernels", {})}.items():
            yield Line(f"embed: {part}", seconds, "s")
