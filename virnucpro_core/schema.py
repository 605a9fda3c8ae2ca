"""The tables that pass between stages, and how to stream them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from virnucpro_core.errors import InputError

FORMAT = "1"
ROWS = 65_536

FRAMES = pa.schema(
    [
        ("frame_id", pa.string()),
        ("contig", pa.string()),
        ("window", pa.int32()),
        ("frame", pa.string()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("nucleotide", pa.string()),
        ("protein", pa.string()),
    ]
)
"""One row a stop-free frame; start, end: 0-based, half-open, on the contig's forward strand."""

INVENTORY = pa.schema(
    [
        ("contig", pa.string()),
        ("description", pa.string()),
        ("length", pa.int64()),
        ("piece", pa.int32()),
        ("sequence", pa.string()),
    ]
)
"""One row a contig, in input order; piece counts from 1."""


@dataclass(frozen=True)
class FrameMeta:
    """What a frame table says of itself, read from its footer alone."""

    window: int
    digest: str
    rows: int


def _open(path: Path, schema: pa.Schema, what: str) -> pq.ParquetFile:
    try:
        table = pq.ParquetFile(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give {what}.") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{path}: not a complete Parquet file ({str(error).splitlines()[0]}); give {what}."
        ) from None
    missing = [name for name in schema.names if name not in table.schema_arrow.names]
    if missing:
        raise InputError(f"{path}: has no column {missing[0]!r}; give {what}.")
    return table


def _stream(
    path: Path, table: pq.ParquetFile, rows: int, columns: Sequence[str] | None
) -> Iterator[pa.RecordBatch]:
    try:
        yield from table.iter_batches(batch_size=rows, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{path}: is damaged ({str(error).splitlines()[0]}); write it again."
        ) from None


def _open_frames(path: Path) -> pq.ParquetFile:
    return _open(path, FRAMES, "a frame table as `virnucpro translate` writes it")


def frame_meta(path: Path) -> FrameMeta:
    """Window, content digest and number of rows of a frame table.

    Raises InputError when the file is no frame table or of another format version.
    """
    table = _open_frames(path)
    meta = table.metadata.metadata or {}
    if meta.get(b"virnucpro.format") != FORMAT.encode():
        raise InputError(
            f"{path}: not written by this version's `virnucpro translate`; translate again."
        )
    return FrameMeta(
        window=int(meta[b"virnucpro.window"]),
        digest=meta[b"virnucpro.digest"].decode(),
        rows=table.metadata.num_rows,
    )


def frame_batches(
    path: Path, columns: Sequence[str] | None = None, rows: int = ROWS
) -> Iterator[pa.RecordBatch]:
    """Stream a frame table in row order, `rows` at a time; InputError when the file is none."""
    yield from _stream(path, _open_frames(path), rows, columns)


def inventory_batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Stream a contig inventory in input order; InputError when the file is none."""
    table = _open(path, INVENTORY, "the contigs.parquet that `virnucpro split` writes")
    yield from _stream(path, table, 4096, columns)
