"""Standard input as a FASTA file."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from virnucpro_core.errors import InputError
from virnucpro_core.files import blamed

STDIN = Path("/dev/stdin")


def named(fasta: Sequence[Path], output: Path) -> list[Path]:
    """The files to read: for `-` /dev/stdin, as a file whose content identifies it, as others' do.

    A pipe is first copied whole to the disk of the output, into a file that has no name and goes
    with this process, and takes that file's place: it can then be read more than once.
    """
    if Path("-") not in fasta:
        return list(fasta)
    if sys.stdin is not None and sys.stdin.isatty():
        raise InputError("-: standard input is a terminal; send FASTA into it, as in < contigs.fa.")
    if STDIN.exists() and not STDIN.is_file():
        places = (output.absolute(), *output.absolute().parents)
        disk = next(place for place in places if place.is_dir())
        with blamed(disk), STDIN.open("rb") as pipe, TemporaryFile(dir=disk) as copy:
            shutil.copyfileobj(pipe, copy, 1 << 20)
            copy.flush()
            os.dup2(copy.fileno(), 0)
    return [STDIN if path == Path("-") else path for path in fasta]
