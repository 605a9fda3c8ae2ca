"""Stage `embed`: both encoders over every frame of a table, packed, overlapped, checkpointed.

A frame's row is the nucleotide encoder's vector of its bases, then the protein encoder's of its
protein. Reading and tokenising run on a thread ahead of the model, writing on one behind it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro_core.embedding.devices import default_precision, leased, parse_devices
from virnucpro_core.embedding.encoders import FrameEncoder
from virnucpro_core.embedding.journal import Finished, RowWriter
from virnucpro_core.embedding.monitor import watched
from virnucpro_core.embedding.prefetch import prefetch
from virnucpro_core.embedding.schedule import Rows, Schedule, protein_tokens
from virnucpro_core.embedding.series import Record
from virnucpro_core.embedding.shards import SHARD_FORMAT, EmbeddingFile, Origin, create_shard, seal
from virnucpro_core.embedding.timing import Stages, process_seconds
from virnucpro_core.embedding.workers import refuse_respawn, run_ranks
from virnucpro_core.errors import (
    BusyError,
    GpuMemoryError,
    InputError,
    StoppedError,
    VirNucProError,
    first_line,
)
from virnucpro_core.files import blamed, keep_apart, locked, sync_folder, written_aside
from virnucpro_core.models.attention import numerics
from virnucpro_core.models.gate import require
from virnucpro_core.models.packing import packing_enabled
from virnucpro_core.models.store import Model
from virnucpro_core.parquet import FrameMeta, frame_meta
from virnucpro_core.progress import Progress
from virnucpro_core.sequences.pace import LONG, cpu_seconds, in_words

logger = logging.getLogger("virnucpro.embed")

Bools = NDArray[np.bool_]

THREADS = 8
"""Threads beyond which those of a process that has a small model wait for Python's lock."""

SMALL = 5e7
"""Parameters up to which a model is small; two layers of ESM-2 650M have 4e7, and fill a core."""


@dataclass(frozen=True)
class Job:
    """What one `embed` run does, the same for each of its processes.

    folder: where the shard is written in place, see `begin`. A job is small, however many rows it
    has: what a pipe does not hold at once has each process started once the last has its imports
    behind it.
    """

    frames: Path
    model: Model
    precision: str
    token_budget: int | None
    folder: Path

    @cached_property
    def done(self) -> Bools:
        """Rows that an earlier run has written, bool (N): read in each process."""
        with blamed(self.folder / DONE):
            return np.frombuffer((self.folder / DONE).read_bytes(), np.bool_)


def embed_rank(job: Job, device: str, rank: int, world: int, stop: Event) -> None:
    """Embed the frames [rank::world] of the length-sorted table, into the shard's rows.

    Raises StoppedError, after writing what is finished, once `stop` is set.
    """
    stages = Stages()
    with Progress("embed", None, "tokens", "loading the model") as progress:
        with stages("load"):
            try:
                encoder = FrameEncoder(job.model, torch.device(device), job.precision)
            except torch.OutOfMemoryError as error:
                raise GpuMemoryError(
                    f"{device}: out of memory while loading {job.model.name}; is another program "
                    f"on it? ({first_line(error)})"
                ) from None
            lengths = protein_tokens(job.frames)
        budget = job.token_budget or encoder.token_budget()
        schedule = Schedule(lengths, job.done, budget, rank, world)
        said = "%s: %d of %d batches kept, %d frames to do in batches of %d tokens"
        logger.info(said, device, schedule.kept, schedule.planned, schedule.frames, budget)
        if device == "cpu" and rank == 0:
            seconds = cpu_seconds(lengths[~job.done].sum(), encoder.parameters())
            if seconds >= LONG:
                logger.warning("the CPU does the work, and takes %s", in_words(seconds))
            small = encoder.parameters() <= SMALL
            if small and world == 1 and torch.get_num_threads() > THREADS:
                several = ",".join(["cpu"] * (torch.get_num_threads() // 4))
                logger.info("a small model is faster in processes: --device %s", several)
        progress.begin(schedule.tokens, schedule.tokens_kept)
        earlier = len([*job.folder.glob(f"used{rank}.*")])
        path = job.folder / f"used{rank}.{earlier}.jsonl"
        seen: list[Record] = []

        def record() -> None:
            seconds = round(stages.whole, 3)
            said = {**used(device, job.precision), "seconds": seconds, "gpus": seen}
            with blamed(path), path.open("a") as file:  # in place: there may be room for one alone
                file.write(json.dumps(said) + "\n")
                file.flush()
                os.fsync(file.fileno())

        record()  # who made its rows is known of a run that is killed too
        try:
            with watched(device) as monitor:
                seen = monitor.seen

                def tell(rows: Rows) -> None:
                    progress.advance(int(lengths[rows].sum()), monitor.now)

                run_schedule(encoder, schedule, job, rank, stages, stop, tell)
        except StoppedError:
            record()
            raise
    logger.debug("%s: %s", device, stages)
    record()


def used(device: str, precision: str) -> dict[str, str | int]:
    """What this process worked with: the device's name, the precision, its peak of memory."""
    if device == "cpu":
        name, peak = "CPU", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    else:
        name = torch.cuda.get_device_name(device)
        peak = torch.cuda.max_memory_allocated(device)
    return {"device": name, "precision": precision, "peak_bytes": peak}


def run_schedule(
    encoder: FrameEncoder,
    schedule: Schedule,
    job: Job,
    rank: int,
    stages: Stages,
    stop: Event,
    tell: Callable[[Rows], None] = lambda rows: None,
) -> None:
    """Embed what is scheduled into the shard: read and tokenise ahead, write behind.

    tell: gets the rows of each batch, int64 (B), that is embedded.
    """
    journal = job.folder / f"rank{rank}.journal"
    with (
        closing(RowWriter(job.folder / SHARD, journal, stages)) as writer,
        closing(prefetch(schedule.batches(job.frames, encoder.tokenize, stages))) as work,
    ):
        for number, (rows, embedding) in enumerate(encoder.embed(work, stages)):
            if number == 0:
                logger.debug("first batch %.1f s after the start: %s", process_seconds(), stages)
            writer.add(rows, embedding)
            tell(rows)
            if stop.is_set():
                raise StoppedError("stopped by a signal; run the same command to go on.")


SHARD, DONE = "shard.h5", "done"


def origin_of(model: Model, precision: str) -> Origin:
    """What decides the values of a run's embeddings; InputError for an unknown switch."""
    packed = packing_enabled()
    return Origin(model.name, model.encoder_weights, model.window, precision, packed, numerics())


def work_key(meta: FrameMeta, origin: Origin) -> str:
    """A name for the embeddings of a frame table: another for whatever would have other values."""
    said = {**vars(origin), "model": None, "format": SHARD_FORMAT, "frames": meta.digest}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def begin(folder: Path, frames: Path, meta: FrameMeta, origin: Origin, dim: int) -> Bools:
    """Lay out a shard in a folder, unless an earlier run has; which rows are done, bool (N).

    They are written there too, for a `Job`'s processes. Raises MachineError when the disk has no
    room for all of it.
    """
    shard = folder / SHARD
    finished = Finished(folder, meta.rows)
    try:
        finished.verify(shard)
    except InputError as error:
        if shard.exists():
            logger.warning("%s", error)
        create_shard(shard, frames, meta.digest, origin, dim, torch.cuda.device_count())
        finished.verify(shard)  # journals of the shard before vouch for nothing in this one
    with blamed(folder / DONE):
        (folder / DONE).write_bytes(finished.done.tobytes())
    return finished.done


def finish(folder: Path, output: Path, rows: int) -> None:
    """Seal the shard of a folder, rename it and remove the folder.

    Raises VirNucProError when a row of it is not done.
    """
    finished = Finished(folder, rows)
    if not finished.done.all():
        raise VirNucProError("some frames were not embedded; run the same command again.")
    with blamed(folder):
        records = [path.read_text().splitlines(True) for path in sorted(folder.glob("used*"))]
    whole = [[line for line in lines if line.endswith("\n")] for lines in records]
    seal(folder / SHARD, finished.checksum, [json.loads(lines[-1]) for lines in whole if lines])
    with blamed(output):
        try:
            (folder / SHARD).replace(output)
        except OSError as error:
            if error.errno != errno.EXDEV:  # the checkpoints are on another disk
                raise
            with written_aside(output) as aside:
                shutil.copyfile(folder / SHARD, aside)
        sync_folder(output.parent)
    with blamed(folder):
        shutil.rmtree(folder)


def _finished(output: Path, origin: Origin, meta: FrameMeta, *, force: bool) -> bool:
    """Whether the output is there; InputError when it is another one, unless force is set."""
    if not output.exists():
        return False
    try:
        shard = EmbeddingFile(output)
    except InputError as error:
        logger.warning("%s It is written anew.", error)
        return False
    same = shard.origin == origin and shard.digests == (meta.digest,)
    if not same and not force:
        raise InputError(
            f"{output}: holds embeddings of other frames, or of another model, precision or "
            "version; name another output, or replace it with --force."
        )
    return same


@contextmanager
def _workplace(output: Path, checkpoint_dir: Path | None, key: str) -> Iterator[Path]:
    """A folder for the work on `output`, named by what decides its values, for this run alone.

    In `checkpoint_dir`, unless another process is at work on the same frames there: the orphan of
    a run that was killed. Raises BusyError where another process writes the same output.
    """
    beside = output.with_name(f"{output.name}.partial")
    with ExitStack() as stack:
        stack.callback(lambda: _remove_empty(beside))
        busy = f"{output}: another process is writing it; wait for it, or name another output."
        stack.enter_context(locked(beside / "lock", busy))
        folder = beside / key
        if checkpoint_dir is not None:
            busy = f"{checkpoint_dir / key}: another process is at work there"
            try:
                stack.enter_context(locked(checkpoint_dir / f"{key}.lock", busy))
                folder = checkpoint_dir / key
            except BusyError:
                logger.warning("%s; this one starts anew beside its output", busy)
        try:
            yield folder
        finally:
            if not any(path.stat().st_size for path in folder.glob("*.journal")):
                shutil.rmtree(folder, ignore_errors=True)  # nothing is finished that could be lost


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # another run's work is in it
        folder.rmdir()


def embed(
    frames: Path,
    output: Path,
    model: Model,
    *,
    devices: str = "auto",
    gpus: int | None = None,
    precision: str | None = None,
    force: bool = False,
    checkpoint_dir: Path | None = None,
    token_budget: int | None = None,
) -> None:
    """Embed every frame of a table, float32 (N, D) in table order, into an HDF5 shard.

    One process a device; devices and gpus are as `devices.leased` takes them. precision defaults to
    fp32 on CPU and fp16 on CUDA; fp8 needs a passed validation of the model unless `force` is set.
    Rows are written in place, in a folder in `checkpoint_dir` (default: beside the output) named
    for all that decides their values, so a run that was killed goes on where it stood, and stale
    rows are not used. While another process is at work on the very same frames there, they are
    written beside the output.

    Raises InputError for a bad frame table, a table of another window, or an output that holds
    other embeddings (unless `force` is set), ModelError for a model that does not load,
    MachineError for want of room, StoppedError when stopped by a signal.
    """
    refuse_respawn()
    keep_apart(output, [frames])
    places = parse_devices(devices)
    precision = str(precision or default_precision(places[0]))
    require(model, precision, places, force=force)
    meta = frame_meta(frames)
    if meta.window != model.window:
        raise InputError(
            f"{frames}: has windows of {meta.window} bases, {model.name} takes {model.window}; "
            f"translate with --window {model.window}."
        )
    origin = origin_of(model, precision)
    with _workplace(output, checkpoint_dir, work_key(meta, origin)) as folder:
        if _finished(output, origin, meta, force=force):
            logger.info("%s is complete already", output)
            shutil.rmtree(folder, ignore_errors=True)  # a kill may have left it after the rename
            return
        done = begin(folder, frames, meta, origin, model.dim)
        if not done.all():
            with leased(devices, gpus) as places:
                job = Job(frames, model, precision, token_budget, folder)
                run_ranks(embed_rank, job, [str(place) for place in places], output)
        finish(folder, output, meta.rows)
    logger.info("%d frames embedded with %s in %s", meta.rows, model.name, precision)
