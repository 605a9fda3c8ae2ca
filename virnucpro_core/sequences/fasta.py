"""Reading nucleotide FASTA, plain or compressed, as a stream."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import logging
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import pyarrow as pa

from virnucpro_core.errors import InputError
from virnucpro_core.files import blame_machine
from virnucpro_core.inputs import missing

logger = logging.getLogger("virnucpro.fasta")

_NUCLEOTIDES = b"ACGTNRYMKSWHBVDacgtnrymkswhbvd-"
_BLANKS = b" \t\r\n\v\f"

MAX_BASES = 2_000_000_000
"""Of one contig: a text in Arrow and Parquet ends at 2 GiB."""
_SLICE = 1 << 20


class Contig(NamedTuple):
    """One record: id up to the first blank, the rest of its header, and its bases as written."""

    id: str
    description: str
    sequence: bytes


_OPENERS: dict[bytes, Callable[[BinaryIO], object]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": lambda handle: pa.CompressedInputStream(handle, "zstd"),
}


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a text, plain or compressed, by content, not by name.

    InputError for a file that is missing, empty, or cannot be read to its end.
    """
    try:
        # opened once, since a pipe cannot be read again
        with io.BufferedReader(path.open("rb", buffering=0), buffer_size=1 << 20) as handle:
            magic = handle.peek(6)
            if not magic:
                raise InputError(f"{path}: the file is empty; give a FASTA of contigs.")
            if magic.startswith(codecs.BOM_UTF8):  # Windows editors put it before the first '>'
                handle.read(len(codecs.BOM_UTF8))
            lines: BinaryIO = handle
            for start, opener in _OPENERS.items():
                if magic.startswith(start):  # iterates over lines in C, which GzipFile does not
                    lines = io.BufferedReader(cast(io.RawIOBase, opener(handle)), 1 << 20)
            with lines:
                yield lines
    except FileNotFoundError:
        raise missing(path) from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; name the FASTA files in it.") from None
    except PermissionError:
        raise InputError(f"{path}: may not be read; ask its owner for permission.") from None
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        blame_machine(error, path)
        raise InputError(
            f"{path}: cannot be read to its end ({error}); "
            "the file is truncated or damaged, copy it again."
        ) from None


def _refuse_letter(path: Path, first_line: int, text: bytes) -> InputError:
    masked = _is_masked(text)
    for number, line in enumerate(text.split(b"\n"), first_line):
        bad = line.translate(None, _NUCLEOTIDES + _BLANKS)
        if bad:
            letter = bad[:1].decode("latin-1")
            why = (
                "this is RNA; write T for U"
                if letter in "Uu"
                else "write N for a masked base"
                if masked
                else "this looks like protein; give the contigs' nucleotides"
                if letter.upper() in "EFILPQZJOX*"
                else "give FASTA with IUPAC nucleotide letters"
            )
            return InputError(f"{path}, line {number}: {letter!r} is no nucleotide; {why}.")
    raise AssertionError("called without a foreign letter")


def _is_masked(text: bytes) -> bool:
    """Whether X is the one foreign letter and all but a few others are plain bases."""
    if text.translate(None, _NUCLEOTIDES + _BLANKS + b"Xx"):
        return False
    rest = text.translate(None, _BLANKS + b"Xx")
    return 10 * len(rest.translate(None, b"ACGTNacgtn")) <= len(rest)


def _contig(path: Path, line: int, header: bytes, lines: list[bytes]) -> Contig:
    """Of a record's lines, which are taken out of the list: none is held twice for long."""
    text = b"".join(lines)
    lines.clear()
    sequence = text.translate(None, _BLANKS)
    slices = (sequence[at : at + _SLICE] for at in range(0, len(sequence), _SLICE))
    if any(part.translate(None, _NUCLEOTIDES) for part in slices):
        raise _refuse_letter(path, line + 1, text)
    if len(sequence) > MAX_BASES:
        raise InputError(
            f"{path}, line {line}: a contig of {len(sequence):,} bases, where {MAX_BASES:,} is the "
            "most; cut it in two."
        )
    if b"\r" in header.rstrip():  # all of the file would be this one header
        raise InputError(
            f"{path}, line {line}: its lines end as on an old Mac; convert them: tr '\\r' '\\n'."
        )
    try:
        words = header[1:].decode().split(None, 1)
    except UnicodeDecodeError:
        raise InputError(f"{path}, line {line}: the header is not UTF-8; re-encode it.") from None
    if not words:
        raise InputError(f"{path}, line {line}: the header has no id; write '>id' first.")
    return Contig(words[0], words[1].strip() if len(words) > 1 else "", sequence)


def _records(path: Path, handle: Iterable[bytes]) -> Iterator[tuple[int, Contig]]:
    header, header_line = b"", 0
    lines: list[bytes] = []
    for number, line in enumerate(handle, 1):
        if line.startswith(b">"):
            if header:
                yield header_line, _contig(path, header_line, header, lines)
            header, header_line, lines = line, number, []
        elif header:
            lines.append(line)
        elif line.strip():
            kind = "this looks like FASTQ; assemble the reads first" if line[:1] == b"@" else ""
            raise InputError(
                f"{path}, line {number}: not FASTA, a '>' header was expected; "
                f"{kind or 'give a FASTA of contigs'}."
            )
    if not header:
        raise InputError(f"{path}: holds no contig, only blank lines; give a FASTA of contigs.")
    yield header_line, _contig(path, header_line, header, lines)


def read_fasta(paths: Iterable[Path]) -> Iterator[Contig]:
    """Stream the contigs of FASTA files (plain, gzip, bzip2, xz or zstd, told by content).

    Every contig gets an id of its own: where an earlier file has it already, `_file2` is added to
    it in the second file, `_file3` in the third, until no other contig has it. All other ids stay
    as they are. Memory holds one contig, and the ids seen (about 100 bytes each).

    Raises InputError, naming file and line, for a missing, empty, truncated, non-FASTA or
    non-nucleotide file, for an id that appears twice in a file, and for a file named twice.
    """
    taken: set[str] = set()
    before: set[Path] = set()
    for number, path in enumerate(paths, 1):
        if path in before:
            raise InputError(f"{path}: is named twice; name every file once.")
        before.add(path)
        own = set[str]() if taken else taken  # of a single file, ids are held once
        again = 0
        with opened(path) as handle:
            for line, contig in _records(path, handle):
                if contig.id in own:
                    raise InputError(
                        f"{path}, line {line}: contig id {contig.id!r} appears twice; "
                        "give every contig an id of its own."
                    )
                name = contig.id
                while name in taken:
                    name += f"_file{number}"
                again += name != contig.id
                own.add(contig.id)
                taken.add(name)
                yield contig._replace(id=name)
        if again:
            logger.warning(
                "%s: an earlier file has %d of its ids too; they get _file%d behind them",
                path,
                again,
                number,
            )
