"""Stage `split`: FASTA files to pieces of whole contigs, and an inventory of every contig."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa

from virnucpro_core.errors import InputError
from virnucpro_core.files import keep_apart, made, write_json, written_aside
from virnucpro_core.inputs import RECORD, Input, identify, read_record, same
from virnucpro_core.parquet import CUT_FROM, table_writer
from virnucpro_core.progress import Progress, counted
from virnucpro_core.schema import INVENTORY
from virnucpro_core.sequences.fasta import Contig, read_fasta
from virnucpro_core.sequences.frames import batches
from virnucpro_core.sequences.pace import about_bases

logger = logging.getLogger("virnucpro.split")

SHARD_BP = 10_000_000


def _pieces(contigs: Iterable[Contig], shard_bp: int) -> Iterator[tuple[int, Contig]]:
    """Each contig with the number of its piece; one begins when the last has `shard_bp` bases."""
    piece, size = 1, 0
    for contig in contigs:
        if size >= shard_bp:
            piece, size = piece + 1, 0
        yield piece, contig
        size += len(contig.sequence)


def _inventory(contigs: list[Contig], piece: int) -> pa.RecordBatch:
    ids, descriptions, sequences = zip(*contigs, strict=True)
    lengths = np.array([len(sequence) for sequence in sequences])
    ends = np.append(0, np.cumsum(lengths)).astype(np.int32)
    bases = pa.py_buffer(b"".join(sequences))  # of a single one, no copy
    return pa.record_batch(
        [
            pa.array(ids),
            pa.array(descriptions),
            pa.array(lengths),
            pa.array([piece] * len(ids), pa.int32()),
            pa.StringArray.from_buffers(len(ids), pa.py_buffer(ends), bases),
        ],
        schema=INVENTORY,
    )


def split(
    fasta: Sequence[Path],
    folder: Path,
    shard_bp: int = SHARD_BP,
    *,
    force: bool = False,
    given: Input | None = None,
) -> list[Path]:
    """Cut FASTA files into `piece_00001.fasta` … of whole contigs, about `shard_bp` bases each.

    Also writes `contigs.parquet` (`schema.INVENTORY`): every contig once, in input order, with
    its bases, so that later stages need no look at the input. Both of an earlier run on the same
    input go first, so that no inventory stands beside pieces of another; those of another input
    are refused and stay, unless force is set. given: the input, where it is identified already.

    Returns the pieces in order. Raises InputError as `read_fasta` does, and for an input in the
    place of a piece; then no piece is left, nor the folder if it was not there.
    """
    given = given or identify(fasta)
    earlier = [*folder.glob("piece_*.fasta"), *folder.glob("contigs.parquet")]
    for old in earlier:
        keep_apart(old, fasta)
    known = read_record(folder)
    if (earlier or known) and not force and not same(known, given):
        raise InputError(
            f"{folder}: holds the pieces of another input; give another folder, or --force to "
            "replace them."
        )
    pieces: list[Path] = []
    with made(folder), written_aside(folder / "contigs.parquet") as inventory:
        for old in earlier:
            old.unlink()
        write_json(folder / RECORD, given)
        try:
            count = _cut(fasta, folder, shard_bp, inventory, pieces, given)
        except BaseException:
            for path in pieces:
                path.unlink(missing_ok=True)
            if known is None:  # else the folder holds more of that work
                (folder / RECORD).unlink(missing_ok=True)
            raise
    logger.info("%s in %s", counted(count, "contig"), counted(len(pieces), "piece"))
    return pieces


def _cut(
    fasta: Sequence[Path],
    folder: Path,
    shard_bp: int,
    inventory: Path,
    pieces: list[Path],
    given: Input,
) -> int:
    """Write the inventory and the pieces, which are added to the list; return their contigs."""
    count = 0
    options = {"use_dictionary": ["piece"], "write_statistics": ["length", "piece"]}
    with (
        table_writer(inventory, INVENTORY, **options) as writer,
        Progress("split", about_bases(fasta) or None, "bases") as progress,
    ):
        numbered = _pieces(read_fasta(fasta), shard_bp)
        for piece, contigs in groupby(numbered, itemgetter(0)):
            path = folder / f"piece_{piece:05d}.fasta"
            pieces.append(path)  # before it is there: a signal may come right after
            with written_aside(path) as aside, aside.open("wb") as handle:
                for batch in batches(contig for _, contig in contigs):
                    for contig in batch:
                        lines = (b">", contig.id.encode(), b"\n", contig.sequence, b"\n")
                        handle.writelines(lines)
                    writer.write(_inventory(batch, piece))  # one row group
                    progress.advance(sum(len(contig.sequence) for contig in batch))
                    count += len(batch)
        writer.finish({CUT_FROM: json.dumps(given)})
    return count
