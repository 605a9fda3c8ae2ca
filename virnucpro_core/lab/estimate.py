"""`virnucpro estimate`: what a run would take of files as they come, here and on other GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from virnucpro_core.errors import ModelError
from virnucpro_core.estimate import Amount, Cost, Estimate, Sizes, on_gpu, sizes_of
from virnucpro_core.host import free_disk
from virnucpro_core.models.store import PUBLISHED_WINDOWS, models_folder, resolve_model
from virnucpro_core.sequences.fasta import read_fasta
from virnucpro_core.sequences.frames import batches, frame_parts
from virnucpro_core.sequences.pace import PUBLISHED_PARAMETERS, about_bases
from virnucpro_core.sequences.tokens import ESM_SPECIAL_TOKENS
from virnucpro_core.sequences.translate import by_code
from virnucpro_core.sequences.windows import window_counts

SAMPLE = 20_000_000
"""Bases that are translated, about: of a larger input every n-th batch, which is a second."""

FP8 = ("l40s", "h100", "h200")
"""Classes of GPUs that multiply in fp8."""


def amount_of(fasta: Sequence[Path], window: int, *, code: str = "1", runs: bool = False) -> Amount:
    """Count the windows of FASTA files, and of a sample spread over them the frames.

    Reads them once, to their end. code, runs: as of `translate`. Raises InputError as `read_fasta`
    does.
    """
    every = max(1, about_bases(fasta) // SAMPLE)
    contigs = bases = windows = seen = frames = residues = 0
    for number, batch in enumerate(batches(read_fasta(fasta))):
        lengths = np.array([len(contig.sequence) for contig in batch])
        contigs += len(batch)
        bases += int(lengths.sum())
        windows += int(window_counts(lengths, window).sum())
        if number % every == 0:
            seen += int(window_counts(np.minimum(lengths, SAMPLE), window).sum())
            cut = [contig._replace(sequence=contig.sequence[:SAMPLE]) for contig in batch]
            for own, alike in by_code(cut, code):
                for table in frame_parts(alike, window, code=own, runs=runs):
                    frames += table.num_rows
                    residues += pc.sum(pc.binary_length(table["protein"])).as_py() or 0
    scale = windows / max(1, seen)
    tokens = residues + ESM_SPECIAL_TOKENS * frames
    exact = seen == windows
    return Amount(contigs, bases, windows, round(frames * scale), round(tokens * scale), exact)


def sizes_by_name(name: str, models_dir: Path | None) -> Sizes:
    """Those of a model at hand, or of a published one that is not here yet.

    Raises what `resolve_model` does of any other.
    """
    try:
        return sizes_of(resolve_model(name, models_dir))
    except ModelError:
        root = models_folder(models_dir)
        if name not in PUBLISHED_WINDOWS or (root is not None and (root / name).exists()):
            raise
        return Sizes(name, PUBLISHED_WINDOWS[name], 3328, PUBLISHED_PARAMETERS, 2560)


def elsewhere(
    amount: Amount, sizes: Sizes, precision: str | None, classes: Sequence[str]
) -> list[Cost]:
    """What a run of that much work takes on one GPU of each class that has the precision."""
    able = [kind for kind in classes if precision != "fp8" or kind in FP8]
    return [on_gpu(amount, sizes, kind, precision or "fp16") for kind in able]


def record(told: Estimate, others: Sequence[Cost]) -> dict[str, Any]:
    """All figures, as JSON has them."""
    return {
        "model": told.sizes.name,
        **told.amount._asdict(),
        "here": told.here._asdict(),
        "elsewhere": [cost._asdict() for cost in others],
        "disk": {
            "while_it_runs": round(told.peak),
            "results": round(told.results),
            "free": free_disk(told.output),
        },
    }
