"""Stage `split`: FASTA files to pieces of whole contigs, and an inventory of every contig."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from virnucpro_core.files import written_aside
from virnucpro_core.schema import INVENTORY
from virnucpro_core.sequences.fasta import Contig, read_fasta
from virnucpro_core.sequences.frames import batches

logger = logging.getLogger("virnucpro.split")

SHARD_BP = 10_000_000


def _inventory(contigs: list[Contig], piece: int) -> pa.RecordBatch:
    ids, descriptions, sequences = zip(*contigs, strict=True)
    columns = (ids, descriptions, [len(s) for s in sequences], [piece] * len(ids), sequences)
    return pa.record_batch(
        [pa.array(column, field.type) for column, field in zip(columns, INVENTORY, strict=True)],
        schema=INVENTORY,
    )


def split(fasta: Iterable[Path], folder: Path, shard_bp: int = SHARD_BP) -> list[Path]:
    """Cut FASTA files into `piece_00001.fasta` … of whole contigs, about `shard_bp` bases each.

    Also writes `contigs.parquet` (`schema.INVENTORY`): every contig once, in input order, with
    its bases, so that later stages need no look at the input. Pieces of an earlier run go.

    Returns the pieces in order. Raises InputError as `read_fasta` does; then no file is written
    that a later stage would take for a whole one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("piece_*.fasta"):
        old.unlink()
    pieces: list[Path] = []
    count = 0
    with (
        written_aside(folder / "contigs.parquet") as inventory,
        pq.ParquetWriter(
            inventory, INVENTORY, compression="zstd", compression_level=1, use_dictionary=["piece"]
        ) as writer,
    ):
        for piece, contigs in enumerate(batches(read_fasta(fasta), shard_bp), 1):
            path = folder / f"piece_{piece:05d}.fasta"
            with written_aside(path) as aside, aside.open("wb") as handle:
                for contig in contigs:
                    handle.write(b">%s\n%s\n" % (contig.id.encode(), contig.sequence))
            writer.write_batch(_inventory(contigs, piece))
            pieces.append(path)
            count += len(contigs)
    logger.info("%d contigs in %d pieces", count, len(pieces))
    return pieces
