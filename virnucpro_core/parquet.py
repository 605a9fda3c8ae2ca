"""Reading and writing the Parquet tables of `schema`, so that damage anywhere is noticed.

Parquet checks its pages where it is asked to, but not its footer, where a flipped bit may put one
column in another's place. So the footer also holds a crc32 of each column's values.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from virnucpro_core.errors import InputError, first_line
from virnucpro_core.files import blame_machine
from virnucpro_core.schema import FRAMES, HALVES, INVENTORY, SCORED

FRAME_FORMAT = "1"
_SAID = {
    "format": FRAME_FORMAT,
    "window": r"[1-9]\d{0,9}",
    "runs": "yes|no",
    "genetic_code": r"auto|[1-9]\d?",
    "read_with": r'\{("[1-9]\d?": \d{1,12}(, )?)*\}',
    "digest": r"[0-9a-f]{64}",
}
"""What the footer of a frame table says, and how that looks."""
BATCH_ROWS = 65_536
_SUMS = "virnucpro.crc32"
CUT_FROM = "virnucpro.cut_from"
"""Key in the footer of an inventory: JSON of the files that `split` read, as `inputs.identify`."""


def text_of(column: pa.Array) -> tuple[NDArray[np.int32], memoryview]:
    """Where each text of a string column ends (N + 1, from 0 on or later), and all their bytes."""
    ends = np.frombuffer(column.buffers()[1], np.int32)[column.offset :]
    # a column that has no text at all may have no buffer for it
    return ends[: len(column) + 1], memoryview(column.buffers()[2] or b"")


class _Sums:
    """The crc32 of each column's values, however they are cut into batches."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            if pa.types.is_string(column.type):
                ends, text = text_of(column)
                parts: tuple[Any, ...] = (np.diff(ends), text[ends[0] : ends[-1]])
            else:
                parts = (column.to_numpy(),)
            for kind, part in zip(("", "'s text"), parts, strict=False):
                key = f"{name}{kind}"
                self.of[key] = zlib.crc32(np.ascontiguousarray(part).data, self.of.get(key, 0))


class TableWriter:
    """Writes batches of one schema, and at the end what the footer says of them."""

    def __init__(self, writer: pq.ParquetWriter, file: BinaryIO) -> None:
        self._writer, self._file, self._sums = writer, file, _Sums()

    def write(self, batch: pa.RecordBatch) -> None:
        """Write rows, as one row group."""
        self._writer.write_batch(batch)
        self._sums.add(batch)

    def finish(self, said: Mapping[str, str] | None = None) -> None:
        """Write the footer, with this in it, and all that is not written yet."""
        self._writer.add_key_value_metadata({_SUMS: json.dumps(self._sums.of), **(said or {})})
        self._writer.close()
        self._file.flush()


@contextmanager
def table_writer(path: Path, schema: pa.Schema, **options: Any) -> Iterator[TableWriter]:
    """A TableWriter, to be finished in here; options are Parquet's."""
    options = {"compression": "zstd", "compression_level": 1, **options}
    # a file of ours: what goes wrong with one of Arrow's, as it is closed, has no errno
    with path.open("wb") as file:
        writer = pq.ParquetWriter(file, schema, write_page_checksum=True, **options)
        try:
            yield TableWriter(writer, file)
        finally:
            writer.is_open = False  # else its end would write a footer, to a file that is closed


@dataclass(frozen=True)
class FrameMeta:
    """What a frame table says of itself, read from its footer alone.

    genetic_code: as translate was told, a number or `auto`. read_with: the number of contigs by
    the code that they were read with. runs: whether windows without a frame have their longest run.
    """

    window: int
    runs: bool
    genetic_code: str
    read_with: dict[str, int]
    digest: str
    rows: int


_UNREADABLE = (
    *(OSError, ValueError, TypeError, KeyError, RecursionError, NotImplementedError),
    pa.ArrowException,
)
"""What pyarrow raises for damaged files; MemoryError is not among them."""


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
            f"{path}: not a complete Parquet file ({first_line(error)}); give {what}."
        ) from None
    for column in schema:
        if found.names.count(column.name) != 1:
            raise InputError(f"{path}: has no column {column.name!r}; give {what}.")
        kind = found.field(column.name).type
        if (kind.value_type if pa.types.is_dictionary(kind) else kind) != column.type:
            raise InputError(
                f"{path}: its column {column.name!r} is {kind}, not {column.type}; give {what}."
            )
    return table


def _checked(
    path: Path, table: pq.ParquetFile, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """All batches of a table's rows; refused where a value is missing or is no text."""
    left = table.metadata.num_rows
    said, found = (table.metadata.metadata or {}).get(_SUMS.encode()), _Sums()
    try:
        for batch in batches:
            batch.validate(full=True)
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                if column.null_count:
                    raise InputError(f"{path}: has a row without {name!r}; write it again.")
            left -= batch.num_rows
            found.add(batch)
            if left == 0 and said is not None:  # before a reader that wants no more has all
                sums = dict(json.loads(said))
                if wrong := [name for name, crc in found.of.items() if sums.get(name) != crc]:
                    raise ValueError(f"{wrong[0]} is not as it was written")
            if batch.num_rows:
                yield batch
    except _UNREADABLE as error:
        blame_machine(error, path)
        raise InputError(f"{path}: is damaged ({first_line(error)}); write it again.") from None
    if left:
        raise InputError(f"{path}: is damaged, {abs(left)} rows differ; write it again.")


def _open_frames(path: Path) -> pq.ParquetFile:
    return _open(path, FRAMES, "a frame table as `virnucpro translate` writes it")


def frame_meta(path: Path) -> FrameMeta:
    """Window, genetic code, content digest and number of rows of a frame table.

    Raises InputError when the file is no frame table or of another format version.
    """
    table = _open_frames(path)
    meta = table.metadata.metadata or {}
    found = {key: meta.get(b"virnucpro." + key.encode(), b"").decode("latin-1") for key in _SAID}
    if not all(re.fullmatch(form, found[key]) for key, form in _SAID.items()):
        raise InputError(
            f"{path}: not written by this version's `virnucpro translate`; translate again."
        )
    return FrameMeta(
        int(found["window"]),
        found["runs"] == "yes",
        found["genetic_code"],
        json.loads(found["read_with"]),
        found["digest"],
        table.metadata.num_rows,
    )


def one_genetic_code(tables: Iterable[tuple[Path, FrameMeta]]) -> str:
    """The genetic code that frame tables were translated with; InputError where they differ."""
    by_code = {meta.genetic_code: path for path, meta in tables}
    if len(by_code) > 1:
        (first, path), (other, another), *_ = by_code.items()
        raise InputError(
            f"{another}: translated with genetic code {other}, and {path} with {first}; translate "
            "all pieces of a sample with one."
        )
    return next(iter(by_code), "1")


def frame_batches(
    path: Path, columns: Sequence[str] | None = None, rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Stream a frame table in row order, `rows` at a time; InputError when the file is none."""
    table = _open_frames(path)
    yield from _checked(path, table, table.iter_batches(batch_size=rows, columns=columns))


def scored_batches(
    path: Path, columns: Sequence[str], rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Stream columns of the frame table of results, and those of HALVES that it has.

    Raises InputError when the file is none.
    """
    table = _open(path, SCORED, "the frames.parquet that `virnucpro classify` writes")
    halves = [name for name in HALVES.names if name in table.schema_arrow.names]
    batches = table.iter_batches(rows, columns=[*columns, *halves])
    yield from _checked(path, table, batches)


def contigs_in(path: Path) -> int:
    """How many contigs an inventory has; InputError when the file is none."""
    rows: int = _open_inventory(path).metadata.num_rows
    return rows


def cut_from(path: Path) -> Any:
    """What an inventory says of the files that `split` read; None where it says nothing.

    Raises InputError when the file is none.
    """
    said = (_open_inventory(path).metadata.metadata or {}).get(CUT_FROM.encode(), b"null")
    try:
        return json.loads(said)
    except (ValueError, RecursionError):
        return None


def _open_inventory(path: Path) -> pq.ParquetFile:
    return _open(path, INVENTORY, "the contigs.parquet that `virnucpro split` writes")


def inventory_batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Stream a contig inventory in input order; InputError when the file is none.

    A batch lies within one row group, which `split` bounds by bases.
    """
    table = _open_inventory(path)
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
