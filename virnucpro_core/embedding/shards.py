"""The HDF5 files of embeddings: `shard.h5` of one frame table, `embeddings.h5` of a sample."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from virnucpro_core.embedding.hdf5 import contiguous, judged, lay_out, open_h5, write_at
from virnucpro_core.embedding.journal import Checksums, checksums
from virnucpro_core.embedding.series import POINTS, joined
from virnucpro_core.errors import InputError
from virnucpro_core.files import blamed, written_aside
from virnucpro_core.parquet import frame_batches
from virnucpro_core.version import __version__

SHARD_FORMAT = "2"

Used = dict[str, Any]
"""Device, precision, peak of memory and seconds of a process that embedded; what its GPU did."""

CHUNK_ROWS = 4096
"""Ids in one HDF5 chunk, and embeddings read at a time: 55 MB of them at 3328 values each."""

USED_BYTES = 16_384
"""Room for what a shard says of a device that works on it: a GPU's series take 10 kB at most."""


@dataclass(frozen=True)
class Origin:
    """What the values of a file of embeddings depend on, apart from the frames.

    weights: sha256 of each file of the encoders. numerics: see `attention.numerics`. model: by what
    name they were called, which decides nothing.
    """

    model: str = field(compare=False)
    weights: dict[str, str]
    window: int
    precision: str
    packed: bool
    numerics: str

    def write(self, file: h5py.File) -> None:
        said = {**vars(self), "weights": json.dumps(self.weights, sort_keys=True)}
        file.attrs.update(said, format=SHARD_FORMAT, version=__version__, complete=True)

    @classmethod
    def read(cls, file: h5py.File) -> Origin:
        attrs = file.attrs
        if attrs["format"] != SHARD_FORMAT:
            raise ValueError(f"it is of format {attrs['format']!r}, not {SHARD_FORMAT}")
        return cls(
            model=str(attrs["model"]),
            weights=dict(json.loads(attrs["weights"])),
            window=int(attrs["window"]),
            precision=str(attrs["precision"]),
            packed=bool(attrs["packed"]),
            numerics=str(attrs["numerics"]),
        )


def lay_out_rows(
    path: Path,
    frames: Sequence[Path],
    origin: Origin,
    dim: int,
    describe: Callable[[h5py.File], None],
    devices: int,
) -> None:
    """Write a file for the rows of frame tables: whole, but for what `write_rows` and `seal` add.

    describe: adds what tells which tables these are. devices: of how many there may be something to
    say. Raises MachineError where the disk has no room for all of it.
    """
    rows = width = 0
    for batch in _ids(frames):
        rows += len(batch)
        width = max(width, pc.max(pc.binary_length(batch)).as_py() or 0)

    def build(file: h5py.File) -> None:
        origin.write(file)
        describe(file)
        contiguous(file, "embedding", (rows, dim), "<f4")
        contiguous(file, "checksum", (rows,), "<u4")
        contiguous(file, "used", (max(1, devices) * USED_BYTES,), "u1")
        kind = h5py.string_dtype("utf-8", max(1, width))
        packed = {"chunks": (min(rows, CHUNK_ROWS),), "compression": 1}
        ids = file.create_dataset("frame_id", (rows,), kind, **(packed if rows else {}))
        at = 0
        for batch in _ids(frames):
            names = np.array(batch.cast("binary").to_pylist(), f"S{max(1, width)}")
            ids[at : at + len(names)] = names.astype(kind)
            at += len(names)

    lay_out(path, build, rows * (4 * dim + 4))


def _ids(frames: Sequence[Path]) -> Iterator[pa.Array]:
    for table in frames:
        for batch in frame_batches(table, ["frame_id"]):
            yield batch["frame_id"]


def create_shard(
    path: Path, frames: Path, digest: str, origin: Origin, dim: int, devices: int = 1
) -> None:
    """Write the shard of a frame table with this digest, its rows still to be written."""

    def describe(file: h5py.File) -> None:
        file.attrs["digest"] = digest

    with written_aside(path) as aside:
        lay_out_rows(aside, [frames], origin, dim, describe, devices)


def place_of(path: Path, dataset: str) -> int:
    """At which byte of a file a `contiguous` dataset begins."""
    with open_h5(path) as file:
        place: int = file[dataset].id.get_offset()
        return place


def write_rows(path: Path, parts: Iterable[NDArray[np.float32]]) -> Checksums:
    """Write consecutive parts, float32 (n, dim) each, of all rows; returns their checksums."""
    sums = [np.zeros(0, np.uint32)]
    at = place_of(path, "embedding")
    with path.open("rb+", buffering=0) as raw:
        for part in parts:
            if part.size:
                write_at(raw.fileno(), np.ascontiguousarray(part, "<f4").data, at)
                at += part.nbytes
                sums.append(checksums(part))
    return np.concatenate(sums)


def seal(path: Path, sums: Checksums, used: Iterable[Used]) -> None:
    """Write the checksums, uint32 (N), of a file's rows, and what each process worked with."""
    with open_h5(path) as file:
        room = file["used"].shape[0]
    said = _fitting(_together(used), room)
    with blamed(path), path.open("rb+", buffering=0) as raw:
        write_at(raw.fileno(), said, place_of(path, "used"))
        if len(sums):
            write_at(raw.fileno(), sums.astype("<u4").data, place_of(path, "checksum"))
        os.fsync(raw.fileno())


def _fitting(used: list[Used], room: int) -> bytes:
    """As JSON of exactly so many bytes, with as long series of the GPUs as there is room for."""
    points = POINTS
    while len(said := json.dumps(used).encode()) > room:
        points //= 2
        used = [{**one, "gpus": joined(one["gpus"], points) if points else []} for one in used]
    return said.ljust(room)


def _together(used: Iterable[Used]) -> list[Used]:
    """Each device and precision once: its peak of memory, number of tasks, seconds of all, GPUs."""
    known: dict[tuple[str, str], Used] = {}
    for one in used:
        new = {**one, "tasks": 0, "seconds": 0.0, "gpus": []}
        same = known.setdefault((one["device"], one["precision"]), new)
        same["tasks"] += one.get("tasks", 1)
        same["seconds"] = round(same["seconds"] + one.get("seconds", 0.0), 3)
        same["peak_bytes"] = max(same["peak_bytes"], one["peak_bytes"])
        same["gpus"] += one.get("gpus", ())
    return [{**one, "gpus": joined(one["gpus"])} for one in known.values()]


class Source(NamedTuple):
    """Rows of one frame table: their file, the first of them in it, and the table's digest."""

    path: Path
    first: int
    rows: int
    digest: str

    def read(self, file: h5py.File, at: int, rows: int) -> tuple[list[str], NDArray[np.float32]]:
        """Ids and embeddings float32 (n, dim) of at most `rows` rows from the source's row `at` on.

        file: the source's, open. Raises InputError at a value that is not finite, and at a row
        that is not as it was written.
        """
        part = slice(self.first + at, self.first + min(at + rows, self.rows))
        with judged(self.path):
            ids = [name.decode() for name in file["frame_id"][part]]
            values: NDArray[np.float32] = file["embedding"][part]
            whole = checksums(values) == file["checksum"][part]
        for good, what in ((whole, "damaged"), (np.isfinite(values).all(axis=1), "not finite")):
            if not good.all():
                raise InputError(
                    f"{self.path}: the embedding of {ids[int(good.argmin())]} is {what}; "
                    "embed its frames again."
                )
        return ids, values

    def parts(self) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """All ids and embeddings in order, CHUNK_ROWS at a time; raises as `read` does."""
        with open_h5(self.path) as file:
            for at in range(0, self.rows, CHUNK_ROWS):
                yield self.read(file, at, CHUNK_ROWS)


class EmbeddingFile:
    """A shard, or the merged embeddings of a sample, read source by source.

    Reading does not go through the virtual dataset, which gives its fill value in silence where a
    source is missing. rows, dim, id_type, origin and sources say what the file holds.

    Raises InputError when the file or one of its sources is missing, truncated or another.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_h5(path) as file, judged(path):
            self.origin = Origin.read(file)
            self.rows, self.dim = file["embedding"].shape
            self.id_type = file["frame_id"].dtype
            if any(file[name].shape != (self.rows,) for name in ("frame_id", "checksum")):
                raise ValueError("its parts are not of one length")
            if "sources" in file:
                self.sources = self._merged(file)
            else:
                self.sources = (Source(path, 0, self.rows, str(file.attrs["digest"])),)

    def _merged(self, file: h5py.File) -> tuple[Source, ...]:
        table = file["sources"]
        rows = table["rows"][()].tolist()
        if sum(rows) != self.rows or min(rows) < 0:
            raise ValueError("its sources have other rows")
        if virtual := file["embedding"].is_virtual:
            firsts = [0] * len(rows)
            paths = [self._beside(name.decode()) for name in table["path"][()]]
        else:
            firsts = (np.cumsum(rows) - rows).tolist()
            paths = [self.path] * len(rows)
        digests = [digest.decode() for digest in table["digest"][()]]
        parts = zip(paths, firsts, rows, digests, strict=True)
        sources = tuple(Source(*part) for part in parts)
        for source in sources if virtual else ():
            with open_h5(source.path) as shard, judged(source.path):
                same = shard["embedding"].shape == (source.rows, self.dim)
                if not same or str(shard.attrs["digest"]) != source.digest:
                    raise InputError(
                        f"{source.path}: is not the shard that was merged; merge again."
                    )
        return sources

    def _beside(self, name: str) -> Path:
        """A source lies relative to the file as it was named, else to where a link leads."""
        for folder in (self.path.parent, self.path.resolve().parent):
            if (folder / name).exists():
                return folder / name
        raise InputError(
            f"{self.path}: its source {name} is not beside it; keep the shards with it, or merge "
            "with --copy."
        )

    def used(self) -> list[Used]:
        """What embedded the rows: each device and precision once, with its peak over all tasks."""
        said: list[Used] = []
        for path in dict.fromkeys(source.path for source in self.sources):
            with open_h5(path) as file, judged(path):
                said += json.loads(bytes(file["used"][()]))
        return _together(said)

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(source.digest for source in self.sources)

    def parts(self) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """`Source.parts` of all sources, in row order."""
        for source in self.sources:
            yield from source.parts()
