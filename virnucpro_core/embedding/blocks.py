"""Checkpoints of an `embed` run: finished blocks of rows, a file each.

A block is a .npy of records (row, embedding), written aside, synced and renamed; a killed run
leaves whole blocks alone, in a folder named for all that decides their values.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro_core.embedding.timing import Stages
from virnucpro_core.errors import VirNucProError
from virnucpro_core.files import written_aside

logger = logging.getLogger("virnucpro.embed")

BLOCK_BYTES = 64 << 20
BLOCK_SECONDS = 2.0
BLOCK_SHARE = 1 / 300
"""Of the run so far, where that is more: a run of days would leave more blocks than Linux lets one
process map (65,530), and then could not join them."""


def _record(dim: int) -> np.dtype[np.void]:
    return np.dtype([("row", np.int64), ("embedding", np.float32, (dim,))])


@contextmanager
def claimed(roots: Sequence[Path], name: str) -> Iterator[Path]:
    """The folder `name` in the first of the roots where no other process has it claimed.

    An orphan of a killed run and its successor would otherwise delete each other's blocks. The
    kernel ends the claim with the process.
    """
    for root in roots:
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("%s: another process is at work there", folder)
            os.close(file)
            continue
        except OSError as error:  # a disk without locks
            logger.debug("%s: %s", folder, error)
        if os.fstat(file).st_nlink == 0:  # done and removed by another just now
            os.close(file)
            continue
        try:
            yield folder
        finally:
            os.close(file)
        return
    raise VirNucProError(f"{roots[-1]}: another process writes this very output; wait for it.")


class BlockWriter:
    """Collects finished batches and writes them as blocks, on a thread of its own."""

    def __init__(
        self, folder: Path, dim: int, executor: ThreadPoolExecutor, stages: Stages
    ) -> None:
        self._folder = folder
        self._stages = stages
        self._dtype = _record(dim)
        self._executor = executor
        self._batches: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        self._bytes = 0
        self._begun = self._since = time.monotonic()
        self._pending: Future[None] | None = None

    def add(self, rows: NDArray[np.int64], embedding: NDArray[np.float32]) -> None:
        """Take one batch: rows int64 (B), embedding float32 (B, dim)."""
        self._batches.append((rows, embedding))
        self._bytes += embedding.nbytes
        now = time.monotonic()
        due = max(BLOCK_SECONDS, BLOCK_SHARE * (now - self._begun))
        if self._bytes >= BLOCK_BYTES or now - self._since >= due:
            self._flush()

    def _flush(self) -> None:
        self._wait()
        if self._batches:
            self._pending = self._executor.submit(self._write, self._batches)
        self._batches, self._bytes, self._since = [], 0, time.monotonic()

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _write(self, batches: list[tuple[NDArray[np.int64], NDArray[np.float32]]]) -> None:
        block = np.empty(sum(len(rows) for rows, _ in batches), self._dtype)
        block["row"] = np.concatenate([rows for rows, _ in batches])
        block["embedding"] = np.concatenate([embedding for _, embedding in batches])
        # a row is embedded once, so its number names the block
        with (
            self._stages("write"),
            written_aside(self._folder / f"{block['row'][0]:012d}.npy") as aside,
            aside.open("wb") as handle,
        ):
            np.save(handle, block)

    def close(self) -> None:
        """Write what is left, and wait until it is on disk."""
        self._flush()
        self._wait()


@contextmanager
def block_writer(folder: Path, dim: int, stages: Stages) -> Iterator[BlockWriter]:
    """A BlockWriter that has written all it was given at the end, also after an error."""
    with ThreadPoolExecutor(1, thread_name_prefix="write") as executor:
        writer = BlockWriter(folder, dim, executor, stages)
        try:
            yield writer
        finally:
            writer.close()


def read_blocks(folder: Path, dim: int, rows: int) -> list[NDArray[np.void]]:
    """The whole blocks of a folder, mapped; one that is damaged or foreign is left out."""
    blocks = []
    for path in sorted(folder.glob("*.npy")):
        try:
            block = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            logger.warning("%s: not a whole block (%s); its rows are embedded again", path, error)
            continue
        if block.dtype != _record(dim) or (
            len(block) and not 0 <= block["row"].min() <= block["row"].max() < rows
        ):
            logger.warning("%s: not a block of this run; its rows are embedded again", path)
            continue
        blocks.append(block)
    return blocks
