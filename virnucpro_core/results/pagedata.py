"""What the page's script reads: contigs and their scored frames, as compressed columns.

A block is gzip of little-endian columns, one after the other, in base64. The frames of a contig
that has a view are `view_rows` rows from row `view_at` on of all frame blocks, `FRAME_ROWS` each.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from virnucpro_core.parquet import scored_batches
from virnucpro_core.results.calls import CALLS, LABELS, REASONS
from virnucpro_core.results.tables import read_regions
from virnucpro_core.schema import CONTIGS

LISTED = 200_000
"""Contigs in the page, the best of all samples: 100,000 with their frames are 9 MB."""
VIEWED = 1_500_000
"""Frames in the page, at most; viral contigs come first, then those with regions, then the best."""
FRAME_ROWS = 1 << 16

CONTIG_COLUMNS = {
    **dict.fromkeys(("sample", "length", "windows", "scored_windows", "frames"), "u4"),
    **dict.fromkeys(("evidence_bp", "viral_windows", "regions", "view_at", "view_rows"), "u4"),
    **dict.fromkeys(("max_virus_score", "mean_virus_score", "score", "probability", "fdr"), "f4"),
    **dict.fromkeys(("call", "reason"), "u1"),
}
"""In this order, so that each column begins at a multiple of its values' size. Of call and reason
the number among `CALLS` and `REASONS`; no float is NaN, no reason 255."""
FRAME_COLUMNS = {
    **dict.fromkeys(("window", "start", "span"), "u4"),
    **dict.fromkeys(("both", "nucleotide", "protein"), "u2"),
    "frame": "u1",
}
"""window and start as differences from the row before; scores in ten-thousandths, UNKNOWN for none.
frame: the number among `FRAMES`."""
FRAMES = ("F1", "F2", "F3", "R1", "R2", "R3", "f1", "f2", "f3", "r1", "r2", "r3")
UNKNOWN = 0xFFFF
_SCORES = ("contig", "window", "frame", "start", "end", "score_virus")
"""What is read of a frame table; its texts are not."""

_ORDER = [
    ("score", "descending"),
    ("mean_virus_score", "descending"),
    ("length", "descending"),
    ("contig", "ascending"),
]
_Array = NDArray[Any]


def packed(*parts: bytes) -> str:
    """The text of one block."""
    return base64.b64encode(gzip.compress(b"".join(parts), 6, mtime=0)).decode("ascii")


class Best:
    """The LISTED best contigs of all that are added, whatever their number."""

    def __init__(self) -> None:
        self._parts = [CONTIGS.append(pa.field("sample", pa.uint32())).empty_table()]
        self._rows = 0

    def add(self, batch: pa.RecordBatch, sample: int) -> None:
        """Contigs as `tables.contig_batches` gives them, of the sample with that number."""
        table = pa.Table.from_batches([batch])
        column = pa.array(np.full(len(table), sample, np.uint32))
        self._parts.append(table.append_column("sample", column))
        self._rows += len(table)
        if self._rows > 2 * LISTED:
            self._parts = [self.table()]
            self._rows = LISTED

    def table(self) -> pa.Table:
        """The best first."""
        return pa.concat_tables(self._parts).sort_by(_ORDER).slice(0, LISTED)


class Shown(NamedTuple):
    """The data of a page: `about` as JSON has it, and blocks by name."""

    about: dict[str, Any]
    blocks: dict[str, str]


def page_data(contigs: pa.Table, outs: Sequence[Path]) -> Shown:
    """The data of these contigs, `Best.table`'s; outs: the folder of each sample.

    Of a folder without a frames.parquet the contigs have no view. Raises InputError for a frame
    table or a regions.tsv that is damaged.
    """
    column = {
        name: contigs[name].to_numpy()
        for name in ("sample", "regions", "score", "frames", "scored_windows")
    }
    is_virus = pc.equal(contigs["call"], "virus").to_numpy()
    viewed = _chosen(is_virus | (column["regions"] > 0), column)
    names = contigs["contig"].to_pylist()
    views = _Views(len(names))
    regions: dict[int, list[list[float]]] = {}
    for number, out in enumerate(outs):
        own = np.flatnonzero(column["sample"] == number).tolist()
        row_of = {names[row]: row for row in own}
        views.add(out / "frames.parquet", {name: r for name, r in row_of.items() if viewed[r]})
        for region in read_regions(out / "regions.tsv"):
            row = row_of.get(region["contig"])
            if row is not None and region["kind"] == "provirus":
                part = [region["start"], region["end"], region["windows"], region["score"]]
                regions.setdefault(row, []).append(part)
    views.flush()
    given = {"view_at": views.at, "view_rows": views.rows}
    numbers = (
        (given[name] if name in given else _numbers(contigs, name)).astype(f"<{kind}").tobytes()
        for name, kind in CONTIG_COLUMNS.items()
    )
    about = {
        "contigs": len(names),
        "frames": views.total,
        "views": int((views.rows > 0).sum()),
        "frame_rows": FRAME_ROWS,
        "contig_columns": CONTIG_COLUMNS,
        "frame_columns": FRAME_COLUMNS,
        "calls": CALLS,
        "labels": LABELS,
        "reasons": REASONS,
        "frame_names": FRAMES,
    }
    blocks = {
        "names": packed("\n".join(names).encode()),
        "contigs": packed(*numbers),
        "regions": packed(json.dumps(regions).encode()),
        **{f"frames{number}": text for number, text in enumerate(views.blocks)},
    }
    return Shown(about, blocks)


def _chosen(first: _Array, column: Mapping[str, _Array]) -> _Array:
    """Which contigs have a view, bool (N), of VIEWED frames at most; `first` ones come first."""
    order = np.lexsort((-np.nan_to_num(column["score"]), ~first))
    # a window that was read has one row or, by its frames, up to six
    most = np.cumsum((column["frames"] + column["scored_windows"])[order].astype(np.int64))
    chosen = np.zeros(len(order), bool)
    chosen[order[most <= VIEWED]] = True
    return chosen


def _numbers(contigs: pa.Table, name: str) -> _Array:
    if name in ("call", "reason"):
        known = pa.array(CALLS if name == "call" else REASONS)
        found = pc.index_in(contigs[name], value_set=known)
        return pc.fill_null(found, 255).to_numpy()  # type: ignore[no-any-return]
    return contigs[name].to_numpy()  # type: ignore[no-any-return]


class _Views:
    """Scored frames of chosen contigs, as they stream by, in blocks of FRAME_ROWS."""

    def __init__(self, contigs: int) -> None:
        self.at, self.rows = np.zeros((2, contigs), np.int64)
        self.blocks: list[str] = []
        self.total = 0
        self._waiting: list[list[_Array]] = []

    def add(self, path: Path, row_of: Mapping[str, int]) -> None:
        """Frames of one sample; row_of: the chosen contigs, and where they stand in the page."""
        if not row_of or not path.exists():
            return
        for batch in scored_batches(path, _SCORES):
            names = batch["contig"].dictionary_encode()
            rows = np.array([row_of.get(name, -1) for name in names.dictionary.to_pylist()])
            row = rows[names.indices.to_numpy()]
            if (keep := row >= 0).any():
                self._add(row[keep], [_frame_column(batch, name)[keep] for name in FRAME_COLUMNS])

    def _add(self, row: _Array, columns: list[_Array]) -> None:
        contig, first, count = np.unique(row, return_index=True, return_counts=True)
        new = self.rows[contig] == 0
        self.at[contig[new]] = self.total + first[new]
        self.rows[contig] += count
        self.total += len(row)
        self._waiting.append(columns)
        while sum(len(part[0]) for part in self._waiting) >= FRAME_ROWS:
            self.flush(FRAME_ROWS)

    def flush(self, rows: int | None = None) -> None:
        """Make a block of these many rows that wait, or of all."""
        if not self._waiting:
            return
        columns = [np.concatenate(parts) for parts in zip(*self._waiting, strict=True)]
        rest = [column[len(column) if rows is None else rows :] for column in columns]
        self._waiting = [rest] if len(rest[0]) else []
        parts = []
        for (name, kind), column in zip(FRAME_COLUMNS.items(), columns, strict=True):
            part = column[:rows].astype(f"<{kind}")
            if name in ("window", "start"):  # differences, modulo 2³²
                part[1:] -= part[:-1].copy()
            parts.append(part.tobytes())
        self.blocks.append(packed(*parts))


def _frame_column(batch: pa.RecordBatch, name: str) -> _Array:
    if name == "frame":
        found = pc.fill_null(pc.index_in(batch["frame"], value_set=pa.array(FRAMES)), 0)
        return found.to_numpy()  # type: ignore[no-any-return]
    if name == "span":
        return pc.subtract(batch["end"], batch["start"]).to_numpy()  # type: ignore[no-any-return]
    score = {"both": "score_virus", "nucleotide": "score_nucleotide", "protein": "score_protein"}
    if name not in score:
        return batch[name].to_numpy()  # type: ignore[no-any-return]
    if score[name] not in batch.schema.names:
        return np.full(batch.num_rows, UNKNOWN)
    values = batch[score[name]].to_numpy()
    return np.where(np.isfinite(values), np.round(np.nan_to_num(values) * 10_000), UNKNOWN)
