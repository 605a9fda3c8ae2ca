"""Files that are either whole or absent."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from virnucpro_core.errors import InputError


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path to write in `path`'s stead; synced and renamed to it at the end, removed on error.

    A killed process leaves at most a `.partial` file, which the next run overwrites.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    try:
        yield aside
        with aside.open("rb+") as handle:
            os.fsync(handle.fileno())
        aside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems can't sync a folder
                raise
        finally:
            os.close(folder)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def keep_apart(output: Path, inputs: Iterable[Path]) -> None:
    """InputError when writing `output` would replace one of the inputs."""
    for path in inputs:
        if output.exists() and path.exists() and output.samefile(path):
            raise InputError(f"{path}: is an input that the output would replace; choose another.")
