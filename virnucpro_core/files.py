"""Files that are either whole or absent, and folders that one process at a time works in."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from virnucpro_core.errors import (
    BusyError,
    InputError,
    MachineError,
    StoppedError,
    out_of_memory,
)

logger = logging.getLogger("virnucpro.files")

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BROKEN = {errno.EIO, errno.EROFS, errno.ESTALE, errno.ETIMEDOUT}
_AT_A_LIMIT = {errno.EMFILE, errno.ENFILE, errno.ENOLCK}
_OF_THE_MACHINE = _FULL | _BROKEN | _AT_A_LIMIT
"""What a machine lacks or breaks; it says nothing about the file that was read or written."""

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EIO, errno.EBADF}
"""What a file system without locks answers, the last where NFS has none of a file open to read."""


def blame_machine(error: BaseException, path: Path) -> None:
    """Raise MachineError, naming the path, where an error is the machine's fault; else do nothing.

    StoppedError where the host's memory ran out, since more of it may be had on the next try.
    To be called first wherever an error is read as a verdict on a file.
    """
    if out_of_memory(error):
        raise StoppedError(
            f"{path}: memory ran out; nothing finished is lost, run the same command again with "
            "more memory."
        ) from error
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        raise MachineError(
            f"{path}: {os.strerror(error.errno)}; nothing finished is lost, mend that and run the "
            "same command again."
        ) from error


@contextmanager
def blamed(path: Path) -> Iterator[None]:
    """Faults of the machine in here become a MachineError that names the path."""
    try:
        yield
    except OSError as error:
        blame_machine(error, path)
        raise


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path to write in `path`'s stead; synced and renamed to it at the end, removed on error.

    A killed process leaves at most a `.partial` file, which the next run overwrites. A link stays
    and its target is written. The path that is given must be written in place, since a lock on it
    keeps a second writer out.

    Raises InputError for a device, a pipe or a socket, IsADirectoryError for a folder, BusyError
    while another process writes the file, MachineError where the disk is full or fails.
    """
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    with blamed(path):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if target.exists() and not target.is_file():
            raise InputError(f"{path}: is no regular file and cannot be replaced; name another.")
        aside = target.with_name(f".{target.name}.partial")
        with locked(aside, f"{path}: another process is writing it; wait, or name another."):
            yield aside
            with aside.open("rb+") as handle:
                os.fsync(handle.fileno())
            aside.replace(target)
            sync_folder(target.parent)


def is_aside(path: Path) -> bool:
    """Whether a file is what `written_aside` leaves when its process is killed."""
    return path.name.startswith(".") and path.name.endswith(".partial")


def write_json(path: Path, content: object) -> None:
    """Write JSON as `written_aside` does."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; those that were not there go again where it stays empty.

    So nothing is left of a run that was refused. InputError where a file is in the way.
    """
    lacking = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in (folder, *folder.parents):
        if one.exists() and not one.is_dir():
            raise InputError(f"{one}: is a file where a folder has to be; name another output.")
    with blamed(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # what holds something stays
            for one in lacking:
                one.rmdir()
        raise


def sync_folder(folder: Path) -> None:
    """Make what was renamed into a folder outlast a crash of the machine."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems can't sync a folder
            raise
    finally:
        os.close(file)


@contextmanager
def locked(path: Path, sentence: str) -> Iterator[None]:
    """Hold the lock file `path`, made where it is missing, and removed at the end.

    The kernel ends the lock with the process, however that ends. The file is open for writing,
    since NFS has no other locks. Raises BusyError with the sentence where another process holds it.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with blamed(path):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if not take_lock(file, path):
                raise BusyError(sentence)
            if not _is(file, path):  # its holder has just finished and removed it
                continue
            try:
                yield
            finally:
                with blamed(path):
                    if _is(file, path):  # else its folder went with the work
                        path.unlink(missing_ok=True)
            return
        finally:
            with blamed(path):
                os.close(file)


def take_lock(file: int, path: Path) -> bool:
    """Lock the open file of a path until it is closed; False where another process holds it.

    On a file system without locks, a warning says that nothing keeps two apart.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _warn_without_locks(path.parent, error.strerror)
    return True


@cache
def _warn_without_locks(folder: Path, why: str) -> None:
    logger.warning(
        "%s: this file system has no locks (%s); see to it that no other run works here at the "
        "same time",
        folder,
        why,
    )


def _is(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def keep_apart(output: Path, inputs: Iterable[Path]) -> None:
    """InputError when writing `output` would replace one of the inputs."""
    for path in inputs:
        if output.exists() and path.exists() and output.samefile(path):
            raise InputError(f"{path}: is an input that the output would replace; choose another.")
