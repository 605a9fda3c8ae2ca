"""All stages in one process, on one machine."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from virnucpro_core.embedding.devices import parse_devices
from virnucpro_core.embedding.engine import embed
from virnucpro_core.embedding.merge import merge
from virnucpro_core.errors import InputError
from virnucpro_core.files import keep_apart
from virnucpro_core.models.store import resolve_model
from virnucpro_core.models.validations import require
from virnucpro_core.results.calls import MIN_VIRAL_FRACTION, check_min_viral_fraction
from virnucpro_core.results.classify import classify
from virnucpro_core.results.report import write_report
from virnucpro_core.sequences.split import split
from virnucpro_core.sequences.translate import translate

WORK = ".work"
_ENDING = re.compile(r"(\.(fa|fasta|fna|fas))?(\.(gz|bz2|xz|zst))?$")
"""What a sample's name, made of its file's, goes without."""


def predict(
    fasta: str | Path | Sequence[str | Path],
    model: str = "mini",
    *,
    output: str | Path | None = None,
    models_dir: str | Path | None = None,
    devices: str = "auto",
    precision: str | None = None,
    force: bool = False,
    min_viral_fraction: float = MIN_VIRAL_FRACTION,
) -> pa.Table:
    """Call the contigs of FASTA files; returns the table of contigs (columns of contigs.tsv).

    With `output`, that folder gets all result files and the report, and the same call after a
    kill goes on where it stood; without, nothing is kept. force runs fp8 without a validation.

    Raises InputError for bad input, ModelError for a model that is missing or does not load.
    """
    paths = [Path(fasta)] if isinstance(fasta, str | Path) else [Path(path) for path in fasta]
    # what is wrong is refused before anything is done
    if not paths:
        raise InputError("no FASTA was given; name at least one file.")
    check_min_viral_fraction(min_viral_fraction)
    kept: AbstractContextManager[str | Path] = (
        nullcontext(output) if output is not None else TemporaryDirectory(prefix="virnucpro-")
    )
    with kept as folder:
        out = Path(folder)
        chosen = resolve_model(model, None if models_dir is None else Path(models_dir))
        keep_apart(out / "viral.fasta.gz", paths)
        places = parse_devices(devices)
        if precision is not None:
            require(chosen, precision, places, force=force)
        work = out / WORK
        contigs, frames, shard, embeddings = (
            work / name
            for name in ("contigs.parquet", "frames.parquet", "shard.h5", "embeddings.h5")
        )
        translate(split(paths, work), frames, chosen.window)
        embed(frames, shard, chosen, devices=devices, precision=precision, force=force)
        merge([shard], [frames], embeddings)
        table = classify(
            embeddings,
            [frames],
            contigs,
            out,
            chosen,
            sample=_ENDING.sub("", paths[0].name),
            min_viral_fraction=min_viral_fraction,
        )
        write_report([out], out / "report.html")
        shutil.rmtree(work)
        return table
