"""HDF5 files that neither a full disk nor a kill can spoil.

HDF5 crashes when its disk is full, and may lose a whole file that is open for writing when its
process is killed. So a file is laid out in memory, copied to a disk that has reserved the room for
all of it, and closed; rows then go to their places by plain writes. It crashes on damaged files
too, so the first 512 bytes, which HDF5 leaves to the user, hold a crc32 of all that was laid out,
which is compared before HDF5 sees the file.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from virnucpro_core.errors import InputError, MachineError, first_line
from virnucpro_core.files import blame_machine

if TYPE_CHECKING:
    from typing_extensions import Buffer

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


_HEAD = struct.Struct("<16sQI")
_MAGIC = b"virnucpro hdf5 1"
_BLOCK = 512
"""The least that HDF5 leaves to the user."""
_PLACES = 8
"""Datasets that are written later, at most."""


def lay_out(path: Path, build: Callable[[h5py.File], None], data_bytes: int = 0) -> None:
    """Write the file that `build` makes, with room for its `contiguous` datasets, to a new `path`.

    data_bytes: what those take; it is asked for before anything else. Raises MachineError where
    the disk has less, OSError as writes do.
    """
    with path.open("wb+", buffering=0) as target:
        _reserve(target.fileno(), path, data_bytes)
        memory = _Memory()
        with h5py.File(memory, "w", libver="latest", userblock_size=_BLOCK) as file:
            build(file)
            places = data_places(file)
        _reserve(target.fileno(), path, memory.size)
        os.ftruncate(target.fileno(), memory.size)
        for at, page in memory.pages.items():
            write_at(target.fileno(), page[: memory.size - at], at)
        sign(target.fileno(), places)


class _Memory(io.RawIOBase):
    """A file in memory that takes room for what was written alone, as pages by their place."""

    PAGE = 1 << 16

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.size = self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self.size)[whence]
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        return self.size

    def _parts(self, length: int) -> Iterator[tuple[int, slice, slice]]:
        """Pages from here on: where each begins, the part of it, the part of so many bytes."""
        done = 0
        while done < length:
            page, first = divmod(self._at, self.PAGE)
            count = min(self.PAGE - first, length - done)
            yield page * self.PAGE, slice(first, first + count), slice(done, done + count)
            done += count
            self._at += count

    def write(self, data: Buffer) -> int:
        text = memoryview(data).cast("B")
        for at, place, part in self._parts(len(text)):
            self.pages.setdefault(at, bytearray(self.PAGE))[place] = text[part]
        self.size = max(self.size, self._at)
        return len(text)

    def readinto(self, data: Buffer) -> int:
        text = memoryview(data).cast("B")
        length = max(0, min(len(text), self.size - self._at))
        for at, place, part in self._parts(length):
            text[part] = self.pages.get(at, bytes(self.PAGE))[place]
        return length


def sign(file: int, places: Sequence[tuple[int, int]]) -> None:
    """Write into the user's block of an open file what `open_h5` compares it with."""
    size = os.fstat(file).st_size
    head = _HEAD.pack(_MAGIC, size, _crc(file, size, places)) + np.array(places, "<u8").tobytes()
    write_at(file, head, 0)


def data_places(file: h5py.File) -> list[tuple[int, int]]:
    """Where the `contiguous` datasets lie, (start, end) in bytes, in order."""
    flat = (item for item in file.values() if isinstance(item, h5py.Dataset) and not item.chunks)
    there = ((item.id.get_offset(), item.nbytes) for item in flat if item.size)
    return sorted((start, start + size) for start, size in there if start is not None)


def _crc(file: int, size: int, places: Iterable[tuple[int, int]]) -> int:
    """crc32 of a file's bytes but for the user's block and the places."""
    crc, at = 0, _BLOCK
    for start, end in (*places, (size, size)):
        crc = zlib.crc32(os.pread(file, start - at, at), crc)
        at = end
    return crc


def _check_crc(path: Path) -> None:
    """ValueError unless a file is as it was laid out."""
    with path.open("rb", buffering=0) as file:
        block = file.read(_BLOCK)
        magic, size, crc = _HEAD.unpack_from(block.ljust(_BLOCK, b"\0"))
        if magic != _MAGIC:
            raise ValueError("it begins otherwise")
        if os.fstat(file.fileno()).st_size != size:
            raise ValueError("it has another size")
        pairs = np.frombuffer(block, "<u8", offset=_HEAD.size, count=2 * _PLACES).reshape(-1, 2)
        places = [(start, end) for start, end in pairs.tolist() if end]
        bounds = [_BLOCK, *chain.from_iterable(places), size]
        if bounds != sorted(bounds) or _crc(file.fileno(), size, places) != crc:
            raise ValueError("its checksum is another")


def _reserve(file: int, path: Path, size: int) -> None:
    """Make a file at least so large, its blocks reserved where the file system can do that.

    (`os.posix_fallocate` would write to each block of a file system that can't.)
    """
    if size == 0 or _libc.fallocate(file, 0, 0, size) == 0:
        return
    code = ctypes.get_errno()
    disk = os.fstatvfs(file)
    free = disk.f_bavail * disk.f_frsize
    if code in (errno.ENOSPC, errno.EDQUOT) or free < size:
        raise MachineError(
            f"{path.parent}: {size / 1e6:,.2f} MB are needed there, {free / 1e6:,.2f} MB are free"
            f"{', beyond a quota' if code == errno.EDQUOT else ''}; make room and run the same "
            "command again."
        )
    if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(code, os.strerror(code))
    os.ftruncate(file, size)


def write_at(file: int, data: Buffer, offset: int) -> None:
    """Write all of `data` at an offset; a disk that is full takes a part without an error."""
    left = memoryview(data).cast("B")
    while left:
        done = os.pwrite(file, left, offset)
        left, offset = left[done:], offset + done


def contiguous(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> None:
    """Add a dataset that lies in one stretch, its bytes left as the disk has them.

    One without elements has no place in the file.
    """
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)  # the same content is the same bytes
    kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
    h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), plan)


@contextmanager
def judged(path: Path) -> Iterator[None]:
    """Whatever goes wrong in here is what the file holds: InputError.

    MachineError where the machine is at fault.
    """
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; embed the frames first.") from None
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        blame_machine(error, path)
        raise InputError(
            f"{path}: is truncated, damaged or no file of embeddings of this version "
            f"({first_line(error)}); embed its frames again."
        ) from None


@contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file to read. It is whole or absent, so no lock is asked for.

    Raises InputError for a file that is missing or not as it was laid out. What is done with it is
    to be `judged`.
    """
    with judged(path):
        _check_crc(path)
        file = h5py.File(path, "r", locking=False)
    with file:
        yield file
