"""Stage `merge`: the shards of a sample, checked against its frames, as one file."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import h5py
import numpy as np

from virnucpro_core.embedding.hdf5 import lay_out
from virnucpro_core.embedding.shards import EmbeddingFile, lay_out_rows, seal, write_rows
from virnucpro_core.errors import InputError
from virnucpro_core.files import keep_apart, written_aside
from virnucpro_core.parquet import frame_batches, frame_meta, one_genetic_code
from virnucpro_core.progress import Progress, counted

logger = logging.getLogger("virnucpro.merge")


def _pair(shards: Sequence[Path], frames: Sequence[Path]) -> list[EmbeddingFile]:
    """The shard of each frame table, in the tables' order."""
    by_digest: dict[str, EmbeddingFile] = {}
    for path in shards:
        shard = EmbeddingFile(path)
        if len(shard.digests) != 1:
            raise InputError(f"{path}: is merged already; give the shards that it was made of.")
        (digest,) = shard.digests
        if digest in by_digest:
            raise InputError(
                f"{path}: embeds the same frames as {by_digest[digest].path}; give each shard once."
            )
        by_digest[digest] = shard
    paired: dict[str, EmbeddingFile] = {}
    metas = [(path, frame_meta(path)) for path in frames]
    one_genetic_code(metas)
    for path, meta in metas:
        if meta.digest in paired:
            raise InputError(f"{path}: this frame table was given twice; give each once.")
        if meta.digest not in by_digest:
            raise InputError(f"{path}: no shard embeds these frames; embed them.")
        shard = by_digest.pop(meta.digest)
        if shard.rows != meta.rows:
            raise InputError(
                f"{shard.path}: {shard.rows} rows for {meta.rows} frames; embed again."
            )
        if shard.origin.window != meta.window:
            raise InputError(
                f"{path}: has windows of {meta.window} bases, the model takes "
                f"{shard.origin.window}; translate again."
            )
        paired[meta.digest] = shard
    if by_digest:
        foreign = next(iter(by_digest.values())).path
        raise InputError(f"{foreign}: embeds none of the given frame tables; leave it out.")
    return list(paired.values())


def _check_shard(
    shard: EmbeddingFile, frames: Path, first: EmbeddingFile, progress: Progress
) -> None:
    if shard.origin != first.origin or shard.dim != first.dim:
        raise InputError(
            f"{shard.path}: made with {shard.origin.model} in {shard.origin.precision}, but "
            f"{first.path} with {first.origin.model} in {first.origin.precision}, or with other "
            "weights; embed all with one model."
        )
    ids = chain.from_iterable(
        batch["frame_id"].to_pylist() for batch in frame_batches(frames, ["frame_id"])
    )
    for found, _ in shard.parts():
        for name in found:
            if name != (expected := next(ids)):
                raise InputError(
                    f"{shard.path}: holds {name} where its frame table has {expected}; embed again."
                )
        progress.advance(len(found))


def _relative(source: Path, folder: Path) -> str:
    """The path from a folder to a source, as the kernel will go it: `..` out of a link's target."""
    name = os.path.relpath(source, folder)
    if (folder / name).exists():
        return name
    return os.path.relpath(source.resolve(), folder.resolve())


def _write_merged(
    path: Path, shards: Sequence[EmbeddingFile], frames: Sequence[Path], copy: bool
) -> None:
    """Join shards, in order, into one file: virtual datasets over them, or a copy."""
    rows, dim, origin = sum(shard.rows for shard in shards), shards[0].dim, shards[0].origin
    names = [_relative(shard.path, path.parent) for shard in shards]

    def describe(file: h5py.File) -> None:
        table = file.create_group("sources")
        table["path"] = np.array([name.encode() for name in names])
        table["rows"] = np.array([shard.rows for shard in shards], np.int64)
        table["digest"] = np.array([shard.digests[0].encode() for shard in shards])

    def build(file: h5py.File) -> None:
        origin.write(file)
        describe(file)
        widest = max(shard.id_type.itemsize for shard in shards)
        for part, width, kind, fill in (
            ("embedding", (dim,), np.dtype(np.float32), np.nan),
            ("checksum", (), np.dtype(np.uint32), None),
            ("frame_id", (), h5py.string_dtype("utf-8", widest), None),
        ):
            layout = h5py.VirtualLayout((rows, *width), kind)
            layout.dcpl.set_obj_track_times(False)  # the same content is the same bytes
            first = 0
            for shard, name in zip(shards, names, strict=True):
                if shard.rows:
                    source = h5py.VirtualSource(name, part, (shard.rows, *width))
                    layout[first : first + shard.rows] = source
                first += shard.rows
            file.create_virtual_dataset(part, layout, fillvalue=fill)

    with written_aside(path) as aside:
        if copy or rows == 0:  # HDF5 1 has no virtual dataset without rows
            used = [one for shard in shards for one in shard.used()]
            gpus = {gpu["gpu"] for one in used for gpu in one.get("gpus", ())}
            lay_out_rows(aside, frames, origin, dim, describe, len(gpus))
            sums = write_rows(aside, (part for shard in shards for _, part in shard.parts()))
            seal(aside, sums, used)
        else:
            lay_out(aside, build)


def merge(
    shards: Sequence[Path], frames: Sequence[Path], output: Path, *, copy: bool = False
) -> int:
    """Join the shards of a sample's frame tables, in the order of the tables.

    Shards find their table by its content, whatever the files are called. Embeddings are not
    copied unless `copy` is set: the result is a virtual dataset whose sources are named relative
    to it. Every row is read once and checked.

    Returns the number of rows. Raises InputError for a shard that is missing, given twice,
    foreign, truncated, not finite, made with another model, or in the place of the output.
    """
    keep_apart(output, [*shards, *frames])
    paired = _pair(shards, frames)
    rows: int = sum(shard.rows for shard in paired)
    with Progress("merge", rows, "embeddings") as progress:
        for shard, table in zip(paired, frames, strict=True):
            _check_shard(shard, table, paired[0], progress)
        _write_merged(output, paired, frames, copy)
    logger.info("%d embeddings of %s", rows, counted(len(paired), "shard"))
    return rows
