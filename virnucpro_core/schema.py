"""The tables that pass between stages, and how to stream them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from virnucpro_core.errors import InputError
from virnucpro_core.files import blame_machine

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


_UNREADABLE = (OSError, ValueError, TypeError, KeyError, NotImplementedError, pa.ArrowException)
"""What pyarrow raises for damaged files; MemoryError is not among them."""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _open(path: Path, schema: pa.Schema, what: str) -> pq.ParquetFile:
    try:
        if not path.is_file() and path.exists():  # reading a pipe would wait for ever
            raise InputError(f"{path}: is no file; give {what}.")
        table = pq.ParquetFile(path, page_checksum_verification=True)
        found = table.schema_arrow
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give {what}.") from None
    except _UNREADABLE as error:
        blame_machine(error, path)
        raise InputError(
            f"{path}: not a complete Parquet file ({_first_line(error)}); give {what}."
        ) from None
    for field in schema:
        if found.names.count(field.name) != 1:
            raise InputError(f"{path}: has no column {field.name!r}; give {what}.")
        kind = found.field(field.name).type
        if (kind.value_type if pa.types.is_dictionary(kind) else kind) != field.type:
            raise InputError(
                f"{path}: its column {field.name!r} is {kind}, not {field.type}; give {what}."
            )
    return table


def _checked(
    path: Path, table: pq.ParquetFile, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """All batches of a table's rows; refused where a value is missing or is no text."""
    left = table.metadata.num_rows
    try:
        for batch in batches:
            batch.validate(full=True)
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                if column.null_count:
                    raise InputError(f"{path}: has a row without {name!r}; write it again.")
            left -= batch.num_rows
            if batch.num_rows:
                yield batch
    except _UNREADABLE as error:
        blame_machine(error, path)
        raise InputError(f"{path}: is damaged ({_first_line(error)}); write it again.") from None
    if left:
        raise InputError(f"{path}: is damaged, {abs(left)} rows differ; write it again.")


def _open_frames(path: Path) -> pq.ParquetFile:
    return _open(path, FRAMES, "a frame table as `virnucpro translate` writes it")


def frame_meta(path: Path) -> FrameMeta:
    """Window, content digest and number of rows of a frame table.

    Raises InputError when the file is no frame table or of another format version.
    """
    table = _open_frames(path)
    meta = table.metadata.metadata or {}
    window, digest = (meta.get(b"virnucpro." + key, b"") for key in (b"window", b"digest"))
    if (
        meta.get(b"virnucpro.format") != FORMAT.encode()
        or not re.fullmatch(rb"[1-9]\d{0,9}", window)
        or not re.fullmatch(rb"[0-9a-f]{64}", digest)
    ):
        raise InputError(
            f"{path}: not written by this version's `virnucpro translate`; translate again."
        )
    return FrameMeta(int(window), digest.decode(), table.metadata.num_rows)


def frame_batches(
    path: Path, columns: Sequence[str] | None = None, rows: int = ROWS
) -> Iterator[pa.RecordBatch]:
    """Stream a frame table in row order, `rows` at a time; InputError when the file is none."""
    table = _open_frames(path)
    for batch in _checked(path, table, table.iter_batches(batch_size=rows, columns=columns)):
        # the footer has no checksum: a flip there may have one column read in another's place
        if {"nucleotide", "protein"} <= set(batch.schema.names):
            bases, residues = (pc.binary_length(batch[n]) for n in ("nucleotide", "protein"))
            over = pc.subtract(bases, pc.multiply(residues, 3))
            if not pc.all(pc.and_(pc.greater_equal(over, 0), pc.less_equal(over, 1))).as_py():
                raise InputError(
                    f"{path}: is damaged, a protein does not fit its bases; write it again."
                )
        yield batch


def inventory_batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Stream a contig inventory in input order; InputError when the file is none.

    A batch lies within one row group, which `split` bounds by bases.
    """
    table = _open(path, INVENTORY, "the contigs.parquet that `virnucpro split` writes")
    batches = (
        batch
        for group in range(table.num_row_groups)
        for batch in table.iter_batches(4096, [group], columns)
    )
    for batch in _checked(path, table, batches):
        if {"length", "sequence"} <= set(batch.schema.names) and not pc.all(
            pc.equal(batch["length"], pc.binary_length(batch["sequence"]))
        ).as_py():
            raise InputError(f"{path}: a contig's length is not that of its bases; split again.")
        yield batch
