"""What a folder holds already: its results, whose they are, and the scores to call again from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from virnucpro_core.errors import InputError
from virnucpro_core.files import blame_machine, write_json
from virnucpro_core.inputs import Input, same
from virnucpro_core.parquet import scored_batches
from virnucpro_core.results.calls import Float32Array
from virnucpro_core.schema import FRAMES, HALVES, SCORED

MADE = "virnucpro.made"
"""Key in the footer of a scored frames.parquet: JSON of `Scores.made`."""


class Scores(NamedTuple):
    """Scores of frames, in the inventory's order, and all that they were made with.

    batches: rows of `schema.FRAMES` with scores float32 (N, 4) of (other, virus, virus by the
    nucleotides alone, by the protein alone), where the last two may be NaN. made: all that
    decides them, the fields of `shards.Origin` with the weights of the classifier too. used: what
    embedded the frames. read_with: the number of contigs by the genetic code they were read with.
    """

    batches: Iterator[tuple[pa.RecordBatch, Float32Array]]
    made: dict[str, Any]
    used: list[Any]
    read_with: dict[str, int]
    ran: list[Any]


def read_summary(out: Path) -> dict[str, Any] | None:
    """The summary.json of results in a folder; None without one, empty when it is none of ours."""
    path = out / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        blame_machine(error, path)
        return {}
    return summary if isinstance(summary, dict) else {}


def record_configuration(out: Path, configuration: Mapping[str, Any]) -> None:
    """Add to a folder's summary.json what a command worked with: `{key: {"value", "from"}}`."""
    summary = {**(read_summary(out) or {}), "configuration": dict(configuration)}
    write_json(out / "summary.json", summary)


def refuse_other(out: Path, given: Input, *, force: bool) -> None:
    """InputError where a folder holds results of another input, unless force is set."""
    summary = read_summary(out)
    if summary is not None and not force and not same(summary.get("input"), given):
        raise InputError(
            f"{out}: holds results of another input; give another folder, or --force to replace "
            "them."
        )


def kept_scores(out: Path) -> Scores:
    """The scores in the frames.parquet of results; InputError when there are none or not whole."""
    path = out / "frames.parquet"
    try:
        footer = pq.read_metadata(path).metadata or {}
        made = json.loads(footer[MADE.encode()])
    except (OSError, KeyError, ValueError, RecursionError, pa.ArrowInvalid) as error:
        blame_machine(error, path)
        raise InputError(f"{path}: keeps no scores of this version; embed again.") from None

    def batches() -> Iterator[tuple[pa.RecordBatch, Float32Array]]:
        columns = ("score_other", "score_virus", *HALVES.names)
        for batch in scored_batches(path, SCORED.names, rows=4096):
            none, found = np.full(batch.num_rows, np.nan, np.float32), batch.schema.names
            scores = np.column_stack([batch[c] if c in found else none for c in columns])
            if scores.dtype != np.float32 or not np.isfinite(scores[:, :2]).all():
                raise InputError(f"{path}: holds a score that is not finite; embed again.")
            yield batch.select(FRAMES.names), scores

    summary = read_summary(out) or {}
    used, read_with = summary.get("embedded_on", []), summary.get("contigs_read_with", {})
    ran = summary.get("ran", [])
    return Scores(batches(), made, used, read_with, ran if isinstance(ran, list) else [])
