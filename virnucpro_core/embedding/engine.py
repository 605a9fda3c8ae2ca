"""Stage `embed`: both encoders over every frame of a table, packed, overlapped, checkpointed.

A frame's row is the nucleotide encoder's vector of its bases, then the protein encoder's of its
protein. Tokenising runs one thread ahead of the model and writing one behind it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from virnucpro_core.embedding.blocks import block_writer, read_blocks
from virnucpro_core.embedding.packing import packing_enabled, plan
from virnucpro_core.embedding.prefetch import prefetch, side_by_side
from virnucpro_core.embedding.shards import EmbeddingFile, Origin, write_shard
from virnucpro_core.embedding.workers import run_ranks
from virnucpro_core.errors import InputError, ModelError, StoppedError, VirNucProError
from virnucpro_core.models.dnabert_s import load_dnabert_s
from virnucpro_core.models.encoder import Encoder, dtype_of
from virnucpro_core.models.esm2 import load_esm2
from virnucpro_core.models.store import Model
from virnucpro_core.progress import Progress
from virnucpro_core.schema import FrameMeta, frame_batches, frame_meta
from virnucpro_core.sequences.tokens import Tokens

logger = logging.getLogger("virnucpro.embed")

ESM_SPECIAL_TOKENS = 2


@dataclass(frozen=True)
class Job:
    """What one `embed` run does, the same for each of its processes."""

    frames: Path
    model: Model
    precision: str
    token_budget: int
    blocks: Path


SLAB = 1 << 18
"""Frames that are sorted by length and held as text at once: it bounds memory, not speed."""

Rows = NDArray[np.int64]
Batch = tuple[Rows, Tokens, Tokens]
"""Rows of the frame table, their nucleotide tokens and their protein tokens."""
Embedded = tuple[Rows, NDArray[np.float32]]
"""Rows of the frame table and their embeddings."""


def _plan(lengths: Rows, token_budget: int, rank: int, world: int) -> list[list[Rows]]:
    """One rank's batches, slab by slab: the rows [rank::world] of each, longest first."""
    slabs = []
    for first in range(0, len(lengths), SLAB):
        mine = np.argsort(-lengths[first : first + SLAB], kind="stable")[rank::world] + first
        slabs.append([mine[batch] for batch in plan(lengths[mine], token_budget)])
    return slabs


def _left(slabs: list[list[Rows]], done: NDArray[np.bool_]) -> list[list[Rows]]:
    """The batches still to do.

    Finished rows are taken out of a plan made of all rows, so that a run that was killed computes
    the same batches as an unbroken one.
    """
    return [[rest for rows in slab if len(rest := rows[~done[rows]])] for slab in slabs]


def _tokenized(
    slabs: list[list[Rows]], nucleotide: Encoder, protein: Encoder, frames: Path
) -> Iterator[Batch]:
    texts = frame_batches(frames, ["nucleotide", "protein"], SLAB)
    for number, (slab, text) in enumerate(zip(slabs, texts, strict=True)):
        for rows in slab:
            part = text.take(pa.array(rows - number * SLAB))
            yield (
                rows,
                nucleotide.tokenize(part["nucleotide"].to_pylist()),
                protein.tokenize(part["protein"].to_pylist()),
            )


def embed_rank(job: Job, device: str, rank: int, world: int, stop: Event) -> None:
    """Embed the frames [rank::world] of the length-sorted table, into blocks.

    Raises StoppedError, after writing what is finished, once `stop` is set.
    """
    dtype = dtype_of(job.precision)
    nucleotide, protein = (
        encoder.to(device=device, dtype=dtype)
        for encoder in (load_dnabert_s(job.model.nucleotide), load_esm2(job.model.protein))
    )
    dim = job.model.dim
    if nucleotide.dim + protein.dim != dim:
        raise ModelError(
            f"{job.model.folder}: its encoders do not give {dim} values; import again."
        )
    lengths = protein_tokens(job.frames)
    done = np.zeros(len(lengths), np.bool_)
    for block in read_blocks(job.blocks, dim, len(lengths)):
        done[block["row"]] = True
    planned = _plan(lengths, job.token_budget, rank, world)
    slabs = _left(planned, done)
    total, left = (sum(map(len, batches)) for batches in (planned, slabs))
    logger.info("%s: %d of %d batches kept, %d to do", device, total - left, total, left)

    def compute(batch: Batch) -> Embedded:
        rows, bases, residues = batch
        pooled = (nucleotide.embed_tokens_packed(bases), protein.embed_tokens_packed(residues))
        return rows, torch.cat(pooled, dim=1).cpu().numpy()

    progress = Progress("embed", sum(len(rows) for slab in slabs for rows in slab), "frames")
    with (
        block_writer(job.blocks, dim) as writer,
        closing(prefetch(_tokenized(slabs, nucleotide, protein, job.frames))) as work,
    ):
        for rows, embedding in _computed(compute, work, device):
            if not np.isfinite(embedding).all():
                raise VirNucProError(
                    f"{job.model.name} in {job.precision} gives values that are not finite; "
                    "choose another --precision."
                )
            writer.add(rows, embedding)
            progress.advance(len(rows))
            if stop.is_set():
                raise StoppedError("stopped by a signal; run the same command to go on.")


def _computed(
    compute: Callable[[Batch], Embedded], work: Iterable[Batch], device: str
) -> Generator[Embedded]:
    """Batches computed one by one on a GPU, on the CPU one a core.

    A core for each batch needs no barrier within it, which keeps its speed where cores are shared.
    """
    if device != "cpu":
        yield from map(compute, work)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from side_by_side(compute, work, threads)
    finally:
        torch.set_num_threads(threads)


def protein_tokens(frames: Path) -> Rows:
    """ESM-2 tokens of each frame of a table, int64 (N)."""
    parts = [
        pc.binary_length(batch["protein"]).to_numpy(zero_copy_only=False)
        for batch in frame_batches(frames, ["protein"])
    ]
    return np.concatenate([np.zeros(0, np.int64), *parts]) + ESM_SPECIAL_TOKENS


def _gathered(
    blocks: list[NDArray[np.void]], rows: int, dim: int, step: int = 4096
) -> Iterator[NDArray[np.float32]]:
    """The rows of all blocks, in order, a few thousand at a time."""
    block_of = np.full(rows, -1, np.int32)
    place = np.zeros(rows, np.int64)
    for number, block in enumerate(blocks):
        block_of[block["row"]] = number
        place[block["row"]] = np.arange(len(block))
    if (block_of < 0).any():
        raise VirNucProError("some frames were not embedded; run the same command again.")
    for at in range(0, rows, step):
        part = np.empty((min(step, rows - at), dim), np.float32)
        these = block_of[at : at + len(part)]
        for number in np.unique(these):
            mine = np.flatnonzero(these == number)
            part[mine] = blocks[number]["embedding"][place[at + mine]]
        yield part


def _finished(output: Path, origin: Origin, meta: FrameMeta) -> bool:
    if not output.exists():
        return False
    try:
        shard = EmbeddingFile(output)
    except InputError:
        return False
    return shard.origin == origin and shard.digests == (meta.digest,)


def embed(
    frames: Path,
    output: Path,
    model: Model,
    *,
    devices: list[torch.device],
    precision: str | None = None,
    checkpoint_dir: Path | None = None,
    token_budget: int | None = None,
) -> None:
    """Embed every frame of a table, float32 (N, D) in table order, into an HDF5 shard.

    One process a device. precision defaults to fp32 on CPU and fp16 on CUDA. Finished blocks are
    kept in `checkpoint_dir` (default: beside the output) under a name made from all that decides
    their values, so a run that was killed goes on where it stood, and a stale block is not used.

    Raises InputError for a bad frame table or a table of another window, ModelError for a model
    that does not load, StoppedError when stopped by a signal.
    """
    on_cpu = devices[0].type == "cpu"
    precision = precision or ("fp32" if on_cpu else "fp16")
    dtype_of(precision)
    meta = frame_meta(frames)
    if meta.window != model.window:
        raise InputError(
            f"{frames}: has windows of {meta.window} bases, {model.name} takes {model.window}; "
            f"translate with --window {model.window}."
        )
    origin = Origin(model.name, model.encoder_weights, model.window, precision, packing_enabled())
    if _finished(output, origin, meta):
        logger.info("%s is complete already", output)
        return
    key = hashlib.sha256(json.dumps([meta.digest, vars(origin)], sort_keys=True).encode())
    root = checkpoint_dir or output.with_name(f"{output.name}.blocks")
    job = Job(
        frames=frames,
        model=model,
        precision=precision,
        token_budget=token_budget or (2048 if on_cpu else 32_768),
        blocks=root / key.hexdigest()[:16],
    )
    job.blocks.mkdir(parents=True, exist_ok=True)
    if meta.rows:
        run_ranks(embed_rank, job, [str(device) for device in devices])
    ids = [
        name.encode()
        for batch in frame_batches(frames, ["frame_id"])
        for name in batch["frame_id"].to_pylist()
    ]
    parts = _gathered(read_blocks(job.blocks, model.dim, meta.rows), meta.rows, model.dim)
    write_shard(output, origin, meta.digest, np.array(ids, "S"), model.dim, parts)
    shutil.rmtree(job.blocks)
    if checkpoint_dir is None:
        root.rmdir()
    logger.info("%d frames embedded with %s in %s", meta.rows, model.name, precision)
