"""Stage `merge`: the shards of a sample, checked against its frames, as one file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from virnucpro_core.embedding.shards import EmbeddingFile, write_merged
from virnucpro_core.errors import InputError
from virnucpro_core.files import keep_apart
from virnucpro_core.schema import frame_batches, frame_meta

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
    for path in frames:
        meta = frame_meta(path)
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


def _check(shard: EmbeddingFile, frames: Path, first: EmbeddingFile) -> None:
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
    for shard, table in zip(paired, frames, strict=True):
        _check(shard, table, paired[0])
    write_merged(output, paired, paired[0].dim, copy=copy)
    rows: int = sum(shard.rows for shard in paired)
    logger.info("%d embeddings of %d shards", rows, len(paired))
    return rows
