"""Refusals: each carries one sentence for the user and the exit code of the process."""

from __future__ import annotations

import errno
import mmap
import os
import re


class VirNucProError(Exception):
    """A refusal whose text says what is wrong, where, and what to do."""

    exit_code = 1


class MachineError(VirNucProError):
    """A disk is full, fails, or a limit of the machine is reached; no file is to blame for it."""


class BusyError(VirNucProError):
    """Another process is at work on the same files."""


class InputError(VirNucProError):
    """Bad input or usage."""

    exit_code = 2


class ModelError(VirNucProError):
    """A model is missing, or does not verify."""

    exit_code = 3


class GpuMemoryError(VirNucProError):
    """A GPU's memory does not hold the work; a smaller token budget or a larger GPU may."""

    exit_code = 4


class StoppedError(VirNucProError):
    """Stopped by a signal, or for want of memory; the same command goes on where it stood."""

    exit_code = 75


_NO_MEMORY = re.compile(
    r"can.?t allocate memory|cannot allocate|not enough memory|bad_alloc|can't start new thread"
    r"|failed to map segment|memory allocation failed|unable to allocate|pthread_create failed"
    r"|launch worker thread",
    re.IGNORECASE,
)
"""What torch, HDF5, Arrow, safetensors, the C++ library and the loader say of it."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the host's memory ran out, in whatever way a library says it.

    It is then no verdict on the file that was read. A GPU's memory is another matter, and so are
    our own sentences, which name files that may be called anything.
    """
    if isinstance(error, VirNucProError):
        return False
    if isinstance(error, MemoryError):  # Arrow's among them
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    return isinstance(error, Exception) and _NO_MEMORY.search(str(error)) is not None


def first_line(error: BaseException) -> str:
    """What an error says first, or what it is called where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


ROOM = (8 + len(os.sched_getaffinity(0))) << 23
"""Bytes: the stacks of as many threads as there are cores, and what they do first."""


def need_room() -> None:
    """Raise an error that is `out_of_memory` where ROOM cannot be had.

    To be called before threads are started: OpenMP, without, ends the process, and `Thread.start`
    waits for ever for one that died at its first allocation.
    """
    mmap.mmap(-1, ROOM, mmap.MAP_PRIVATE).close()
