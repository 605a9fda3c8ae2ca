"""Rows of a shard, written in place as they are finished, and a journal of what is.

A record of the journal is a number of rows n and a crc32 of what follows: the rows, int64 (n), and
the crc32 of each one's embedding, uint32 (n). It is written once the rows themselves are on disk,
so what it says is there, and a record cut short by a kill is known by its crc32. Each process has
a journal of its own, and none waits for another.
"""

from __future__ import annotations

import logging
import os
import struct
import time
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from virnucpro_core.embedding.hdf5 import judged, open_h5, write_at
from virnucpro_core.embedding.schedule import Rows
from virnucpro_core.embedding.timing import Stages
from virnucpro_core.errors import need_room
from virnucpro_core.files import blamed, written_aside

logger = logging.getLogger("virnucpro.embed")

Checksums = NDArray[np.uint32]

FLUSH_BYTES = 64 << 20
FLUSH_SECONDS = 2.0
"""What a kill costs, at most, and what is being written as it comes."""

_HEAD = struct.Struct("<II")
_ROW, _CHECKSUM = np.dtype("<i8"), np.dtype("<u4")


def checksums(embedding: NDArray[np.float32]) -> Checksums:
    """The crc32 of each row of float32 (n, dim): uint32 (n)."""
    rows = np.ascontiguousarray(embedding, "<f4")
    return np.fromiter((zlib.crc32(row) for row in rows), np.uint32, len(rows))


def _read_journal(path: Path) -> tuple[Rows, Checksums, int]:
    """Rows and checksums of a journal's whole records, and the bytes that these take."""
    with blamed(path):
        text = path.read_bytes() if path.exists() else b""
    rows, sums = [np.zeros(0, _ROW)], [np.zeros(0, _CHECKSUM)]
    at = 0
    while at + _HEAD.size <= len(text):
        count, crc = _HEAD.unpack_from(text, at)
        end = at + _HEAD.size + count * (_ROW.itemsize + _CHECKSUM.itemsize)
        if end > len(text) or zlib.crc32(text[at + _HEAD.size : end]) != crc:
            break
        rows.append(np.frombuffer(text, _ROW, count, at + _HEAD.size))
        sums.append(np.frombuffer(text, _CHECKSUM, count, end - count * _CHECKSUM.itemsize))
        at = end
    if at < len(text):
        logger.warning("%s: ends within a record; its rows are embedded again", path)
    return np.concatenate(rows), np.concatenate(sums), at


def _record(rows: Rows, sums: Checksums) -> bytes:
    said = rows.astype(_ROW).tobytes() + sums.astype(_CHECKSUM).tobytes()
    return _HEAD.pack(len(rows), zlib.crc32(said)) + said


class Finished:
    """What the journals of a folder say: done bool (rows), checksum uint32 (rows)."""

    def __init__(self, folder: Path, rows: int) -> None:
        self._folder, self._journals = folder, sorted(folder.glob("*.journal"))
        self.done = np.zeros(rows, np.bool_)
        self.checksum = np.zeros(rows, np.uint32)
        for path in self._journals:
            these, sums, _ = _read_journal(path)
            inside = (these >= 0) & (these < rows)
            self.done[these[inside]] = True
            self.checksum[these[inside]] = sums[inside]

    def verify(self, shard: Path, step: int = 4096) -> None:
        """Take out of `done`, and of the journals, what the shard does not hold as it was written.

        A row that stayed in a journal would vouch for what is written in its place later.
        """
        lost = 0
        with open_h5(shard) as file, judged(shard):
            for at in range(0, len(self.done), step):
                said = self.done[at : at + step]
                if said.any():
                    found = checksums(file["embedding"][at : at + step])
                    wrong = said & (found != self.checksum[at : at + step])
                    self.done[at : at + step] &= ~wrong
                    lost += int(wrong.sum())
        if lost:
            logger.warning("%s: %d rows are damaged; they are embedded again", shard, lost)
            kept = np.flatnonzero(self.done)
            with written_aside(self._folder / "kept.journal") as aside:
                aside.write_bytes(_record(kept, self.checksum[kept]))
            for path in self._journals:
                if path.name != "kept.journal":
                    path.unlink(missing_ok=True)


class RowWriter:
    """Collects finished batches and writes their rows in place, on a thread of its own.

    To be closed, also after an error: then all that it was given is on disk.
    """

    def __init__(self, shard: Path, journal: Path, stages: Stages) -> None:
        with open_h5(shard) as file:
            dataset = file["embedding"]
            self._first, self._stride = dataset.id.get_offset(), 4 * dataset.shape[1]
        self._path, self._stages = shard, stages
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._shard = os.open(shard, os.O_WRONLY | os.O_CLOEXEC)
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._end = _read_journal(journal)[2]
        self._batches: list[tuple[Rows, NDArray[np.float32]]] = []
        self._bytes = 0
        self._since = time.monotonic()
        self._pending: Future[None] = Future()
        self._pending.set_result(None)

    def add(self, rows: Rows, embedding: NDArray[np.float32]) -> None:
        """Take one batch: rows int64 (B), embedding float32 (B, dim)."""
        self._batches.append((rows, embedding))
        self._bytes += embedding.nbytes
        if self._bytes >= FLUSH_BYTES or time.monotonic() - self._since >= FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        self._pending.result()
        if self._batches:
            need_room()
            self._pending = self._executor.submit(self._write, self._batches)
        self._batches, self._bytes, self._since = [], 0, time.monotonic()

    def _write(self, batches: list[tuple[Rows, NDArray[np.float32]]]) -> None:
        with self._stages("write"), blamed(self._path):
            rows = np.concatenate([rows for rows, _ in batches])
            embedding = np.ascontiguousarray(np.concatenate([part for _, part in batches]), "<f4")
            for row, vector in zip(rows.tolist(), embedding, strict=True):
                write_at(self._shard, vector.data, self._first + row * self._stride)
            os.fdatasync(self._shard)
            record = _record(rows, checksums(embedding))
            write_at(self._journal, record, self._end)
            os.fdatasync(self._journal)
            self._end += len(record)

    def close(self) -> None:
        """Write what is left, and wait until it is on disk."""
        try:
            self._flush()
            self._pending.result()
        finally:
            self._executor.shutdown()
            with blamed(self._path):
                os.close(self._shard)
                os.close(self._journal)
