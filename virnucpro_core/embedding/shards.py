"""The HDF5 files of embeddings: `shard.h5` of one frame table, `embeddings.h5` of a sample."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from virnucpro_core import __version__
from virnucpro_core.errors import InputError
from virnucpro_core.files import written_aside

FORMAT = "1"

Used = dict[str, str | int]
"""Device, precision and peak of memory of a process that embedded."""

ROWS = 1024
"""Ids in one HDF5 chunk, and embeddings copied at a time."""

CHUNK_BYTES = 1 << 20
"""An HDF5 chunk of embeddings, about."""


@dataclass(frozen=True)
class Origin:
    """What the values of a file of embeddings depend on, apart from the frames.

    weights: sha256 of each file of the encoders.
    """

    model: str
    weights: dict[str, str]
    window: int
    precision: str
    packed: bool

    def write(self, file: h5py.File) -> None:
        file.attrs.update(
            {
                "format": FORMAT,
                "model": self.model,
                "weights": json.dumps(self.weights, sort_keys=True),
                "window": self.window,
                "precision": self.precision,
                "packed": self.packed,
                "version": __version__,
                "complete": True,
            }
        )

    @classmethod
    def read(cls, file: h5py.File) -> Origin:
        attrs = file.attrs
        return cls(
            model=str(attrs["model"]),
            weights=json.loads(attrs["weights"]),
            window=int(attrs["window"]),
            precision=str(attrs["precision"]),
            packed=bool(attrs["packed"]),
        )


def create_ids(file: h5py.File, ids: NDArray[np.bytes_]) -> None:
    """Write `frame_id` (N), fixed-width UTF-8."""
    data = ids.astype(h5py.string_dtype("utf-8", max(1, ids.dtype.itemsize)))
    packed = {"chunks": (min(len(ids), ROWS),), "compression": "gzip", "compression_opts": 1}
    file.create_dataset("frame_id", data=data, **(packed if len(ids) else {}))


def create_embedding(file: h5py.File, rows: int, dim: int) -> h5py.Dataset:
    """An empty `embedding` float32 (rows, dim), row-chunked; NaN wherever it is not written."""
    chunk = min(rows, max(1, CHUNK_BYTES // (4 * dim)))
    chunks = (chunk, dim) if rows else None
    return file.create_dataset(
        "embedding", (rows, dim), np.float32, chunks=chunks, fillvalue=np.nan
    )


def write_shard(
    path: Path,
    origin: Origin,
    digest: str,
    ids: NDArray[np.bytes_],
    dim: int,
    parts: Iterator[NDArray[np.float32]],
    used: Sequence[Used] = (),
) -> None:
    """Write a shard from consecutive parts of its embeddings, float32 (n, dim) each.

    used: what each process that made them worked with.

    Raises ValueError, and leaves no file, when the parts are not as many rows as ids.
    """
    with written_aside(path) as aside, h5py.File(aside, "w", locking=False) as file:
        create_ids(file, ids)
        embedding = create_embedding(file, len(ids), dim)
        at = 0
        for part in parts:
            embedding[at : at + len(part)] = part
            at += len(part)
        if at != len(ids):
            raise ValueError(f"{at} embeddings for {len(ids)} frames")
        file.attrs["digest"] = digest
        file.attrs["used"] = json.dumps(used)
        origin.write(file)


@contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """Open a complete file of embeddings; InputError when it is missing, truncated or another."""
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; embed its frames again.") from None
    except OSError as error:
        raise InputError(
            f"{path}: truncated or no HDF5 file ({str(error)[:80]}); embed its frames again."
        ) from None
    with file:
        complete = bool(file.attrs.get("complete", False))
        if not complete or file.attrs.get("format") != FORMAT or "embedding" not in file:
            raise InputError(
                f"{path}: is no complete file of embeddings of this version; embed again."
            )
        yield file


class Source(NamedTuple):
    """Rows of one frame table: their file, the first of them in it, and the table's digest."""

    path: Path
    first: int
    rows: int
    digest: str

    def read(self, file: h5py.File, at: int, rows: int) -> tuple[list[str], NDArray[np.float32]]:
        """Ids and embeddings float32 (n, dim) of at most `rows` rows from the source's row `at` on.

        file: the source's, open. Raises InputError at a value that is not finite.
        """
        part = slice(self.first + at, self.first + min(at + rows, self.rows))
        ids = [name.decode() for name in file["frame_id"][part]]
        values: NDArray[np.float32] = file["embedding"][part]
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            raise InputError(
                f"{self.path}: the embedding of {ids[int(finite.argmin())]} is not finite; "
                "embed its frames again."
            )
        return ids, values


class EmbeddingFile:
    """A shard, or the merged embeddings of a sample, read source by source.

    Reading does not go through the virtual dataset, which gives its fill value in silence where a
    source is missing. rows, dim, origin and sources say what the file holds.

    Raises InputError when the file or one of its sources is missing, truncated or another.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_h5(path) as file:
            self.rows, self.dim = file["embedding"].shape
            self.origin = Origin.read(file)
            if "sources" in file:
                table = file["sources"]
                self.sources = self._merged(
                    file["embedding"].is_virtual,
                    [name.decode() for name in table["path"][()]],
                    table["rows"][()].tolist(),
                    [digest.decode() for digest in table["digest"][()]],
                )
            else:
                self.sources = (Source(path, 0, self.rows, str(file.attrs["digest"])),)

    def _merged(
        self, virtual: bool, names: list[str], rows: list[int], digests: list[str]
    ) -> tuple[Source, ...]:
        if not virtual:
            firsts = (np.cumsum(rows) - rows).tolist()
            return tuple(map(Source, [self.path] * len(rows), firsts, rows, digests))
        sources = tuple(map(Source, map(self._beside, names), [0] * len(rows), rows, digests))
        for source in sources:
            with open_h5(source.path) as file:
                same = file["embedding"].shape == (source.rows, self.dim)
                if not same or file.attrs["digest"] != source.digest:
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
        peaks: dict[tuple[str, str], Used] = {}
        for source in self.sources:
            with open_h5(source.path) as file:
                for one in json.loads(file.attrs.get("used", "[]")):
                    known = peaks.setdefault((one["device"], one["precision"]), {**one, "tasks": 0})
                    known["tasks"] = int(known["tasks"]) + 1
                    known["peak_bytes"] = max(int(known["peak_bytes"]), one["peak_bytes"])
        return list(peaks.values())

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(source.digest for source in self.sources)

    def parts(self, rows: int = 8192) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Ids and embeddings of all sources in row order, at most `rows` at a time."""
        for source in self.sources:
            with open_h5(source.path) as file:
                for at in range(0, source.rows, rows):
                    yield source.read(file, at, rows)


def _relative(source: Path, folder: Path) -> str:
    """The path from a folder to a source, as the kernel will go it: `..` out of a link's target."""
    name = os.path.relpath(source, folder)
    if (folder / name).exists():
        return name
    return os.path.relpath(source.resolve(), folder.resolve())


def write_merged(path: Path, files: Sequence[EmbeddingFile], dim: int, *, copy: bool) -> None:
    """Join shards, in order, into one file: a virtual dataset over them, or a copy."""
    rows = sum(file.rows for file in files)
    copy = copy or rows == 0  # HDF5 has no virtual dataset without rows
    with written_aside(path) as aside, h5py.File(aside, "w", libver="latest", locking=False) as out:
        sources = [source for file in files for source in file.sources]
        names = [_relative(source.path, path.parent) for source in sources]
        if copy:
            embedding = create_embedding(out, rows, dim)
        else:
            layout = h5py.VirtualLayout((rows, dim), np.float32)
        ids: list[NDArray[np.bytes_]] = []
        first = 0
        for source, name in zip(sources, names, strict=True):
            with open_h5(source.path) as shard:
                ids.append(shard["frame_id"][()].astype(bytes))
                block = slice(first, first + source.rows)
                if copy:
                    for at in range(0, source.rows, ROWS):
                        stop = min(at + ROWS, source.rows)
                        embedding[first + at : first + stop] = shard["embedding"][at:stop]
                elif source.rows:
                    layout[block] = h5py.VirtualSource(name, "embedding", (source.rows, dim))
            first += source.rows
        if not copy:
            out.create_virtual_dataset("embedding", layout, fillvalue=np.nan)
        create_ids(out, np.concatenate(ids))
        table = out.create_group("sources")
        table["path"] = np.array([name.encode() for name in names])
        table["rows"] = np.array([source.rows for source in sources], np.int64)
        table["digest"] = np.array([source.digest.encode() for source in sources])
        files[0].origin.write(out)
