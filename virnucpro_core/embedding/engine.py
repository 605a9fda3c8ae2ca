"""Stage `embed`: both encoders over every frame of a table, packed, overlapped, checkpointed.

A frame's row is the nucleotide encoder's vector of its bases, then the protein encoder's of its
protein. Reading and tokenising run on a thread ahead of the model, writing on one behind it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import resource
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro_core.embedding.blocks import block_writer, claimed, read_blocks
from virnucpro_core.embedding.devices import default_precision
from virnucpro_core.embedding.encoders import FrameEncoder
from virnucpro_core.embedding.estimate import cpu_warning
from virnucpro_core.embedding.prefetch import prefetch
from virnucpro_core.embedding.schedule import Schedule, protein_tokens
from virnucpro_core.embedding.shards import EmbeddingFile, Origin, write_shard
from virnucpro_core.embedding.timing import Stages, process_seconds
from virnucpro_core.embedding.workers import run_ranks
from virnucpro_core.errors import GpuMemoryError, InputError, StoppedError, VirNucProError
from virnucpro_core.files import keep_apart, written_aside
from virnucpro_core.models.packing import packing_enabled
from virnucpro_core.models.store import Model
from virnucpro_core.models.validations import require
from virnucpro_core.progress import Progress
from virnucpro_core.schema import FrameMeta, frame_batches, frame_meta

logger = logging.getLogger("virnucpro.embed")


@dataclass(frozen=True)
class Job:
    """What one `embed` run does, the same for each of its processes."""

    frames: Path
    model: Model
    precision: str
    token_budget: int | None
    blocks: Path


def embed_rank(job: Job, device: str, rank: int, world: int, stop: Event) -> None:
    """Embed the frames [rank::world] of the length-sorted table, into blocks.

    Raises StoppedError, after writing what is finished, once `stop` is set.
    """
    stages = Stages()
    try:
        with stages("load"):
            encoder = FrameEncoder(job.model, torch.device(device), job.precision)
    except torch.OutOfMemoryError as error:
        raise GpuMemoryError(
            f"{device}: out of memory while loading {job.model.name}; is another program on it? "
            f"({str(error).splitlines()[0]})"
        ) from None
    with stages("load"):
        lengths = protein_tokens(job.frames)
        done = np.zeros(len(lengths), np.bool_)
        for block in read_blocks(job.blocks, job.model.dim, len(lengths)):
            done[block["row"]] = True
    budget = job.token_budget or encoder.token_budget()
    schedule = Schedule(lengths, done, budget, rank, world)
    logger.info(
        "%s: %d of %d batches kept, %d frames to do in batches of %d tokens",
        device,
        schedule.kept,
        schedule.planned,
        schedule.frames,
        budget,
    )
    run_schedule(encoder, schedule, job, stages, stop)
    logger.info("%s: %s", device, stages)
    with written_aside(job.blocks / f"used{rank}.json") as aside:
        aside.write_text(json.dumps(used(device, job.precision)))


def used(device: str, precision: str) -> dict[str, str | int]:
    """What this process worked with: the device's name, the precision, its peak of memory."""
    if device == "cpu":
        name, peak = "CPU", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    else:
        name = torch.cuda.get_device_name(device)
        peak = torch.cuda.max_memory_allocated(device)
    return {"device": name, "precision": precision, "peak_bytes": peak}


def run_schedule(
    encoder: FrameEncoder, schedule: Schedule, job: Job, stages: Stages, stop: Event
) -> None:
    """Embed what is scheduled into blocks: read and tokenise ahead, write behind."""
    progress = Progress("embed", schedule.frames, "frames")
    tokenizers = encoder.nucleotide.tokenize, encoder.protein.tokenize
    with (
        block_writer(job.blocks, job.model.dim, stages) as writer,
        closing(prefetch(schedule.batches(job.frames, *tokenizers, stages))) as work,
    ):
        for number, (rows, embedding) in enumerate(encoder.embed(work, stages)):
            if number == 0:
                logger.info("first batch %.1f s after the start", process_seconds())
            writer.add(rows, embedding)
            progress.advance(len(rows))
            if stop.is_set():
                raise StoppedError("stopped by a signal; run the same command to go on.")


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


def join_blocks(job: Job, output: Path, origin: Origin, meta: FrameMeta) -> None:
    """Write the shard out of the blocks; VirNucProError when a frame is in none of them."""
    ids = [np.zeros(0, "S1")]
    for batch in frame_batches(job.frames, ["frame_id"]):
        ids.append(np.array(batch["frame_id"].cast("binary").to_pylist(), "S"))
    dim = job.model.dim
    parts = _gathered(read_blocks(job.blocks, dim, meta.rows), meta.rows, dim)
    ranks = [json.loads(path.read_text()) for path in sorted(job.blocks.glob("used*.json"))]
    write_shard(output, origin, meta.digest, np.concatenate(ids), dim, parts, ranks)


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
    force: bool = False,
    checkpoint_dir: Path | None = None,
    token_budget: int | None = None,
) -> None:
    """Embed every frame of a table, float32 (N, D) in table order, into an HDF5 shard.

    One process a device. precision defaults to fp32 on CPU and fp16 on CUDA; fp8 needs a passed
    validation of the model unless `force` is set. Finished blocks are
    kept in `checkpoint_dir` (default: beside the output) under a name made from all that decides
    their values, so a run that was killed goes on where it stood, and a stale block is not used.
    While another process is at work on the very same frames there, they stay beside the output.

    Raises InputError for a bad frame table or a table of another window, ModelError for a model
    that does not load, StoppedError when stopped by a signal.
    """
    keep_apart(output, [frames])
    precision = precision or default_precision(devices[0])
    require(model, precision, devices, force=force)
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
    if devices[0].type == "cpu" and (warning := cpu_warning(frames, model)):
        logger.warning(warning)
    key = hashlib.sha256(json.dumps([meta.digest, vars(origin)], sort_keys=True).encode())
    beside = output.with_name(f"{output.name}.blocks")
    with claimed([checkpoint_dir or beside, beside], key.hexdigest()[:16]) as blocks:
        job = Job(frames, model, precision, token_budget, blocks)
        if meta.rows:
            run_ranks(embed_rank, job, [str(device) for device in devices], output)
        join_blocks(job, output, origin, meta)
        shutil.rmtree(blocks)
    if beside.exists():
        shutil.rmtree(beside)
    logger.info("%d frames embedded with %s in %s", meta.rows, model.name, precision)
