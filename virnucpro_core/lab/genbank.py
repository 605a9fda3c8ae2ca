"""Frames that match annotated proteins, out of GenBank or RefSeq flat files.

So the original made its training set (make_train_dataset_500.py; in units.py `identify_seq` with
`istraindata`, `create_refseq_pro_list`, `seq_in_reflist`): of a record's windows, those without an
ambiguous base; of their stop-free frames, those whose protein is a part of the translation of one
of the record's CDS.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from Bio import BiopythonWarning, SeqIO
from Bio.Seq import UndefinedSequenceError
from Bio.SeqRecord import SeqRecord

from virnucpro_core.errors import InputError
from virnucpro_core.files import keep_apart
from virnucpro_core.sequences.fasta import Contig, opened
from virnucpro_core.sequences.frames import batches, frame_parts
from virnucpro_core.sequences.translate import frame_table
from virnucpro_core.sequences.windows import window_starts

logger = logging.getLogger("virnucpro.train")


_ODD = (ValueError, AssertionError, LookupError, TypeError, BiopythonWarning)
"""What Biopython raises for files that are odd or end early."""


class Annotated(NamedTuple):
    """A record's contig, and the translations of its CDS, parted by blanks.

    The contig's id is `organism#accession`: the organism is the group that is held out whole.
    """

    contig: Contig
    proteins: str


def is_genbank(path: Path) -> bool:
    """Whether a file, plain or compressed, is of flat records; a pipe is not looked into."""
    if not path.is_file():
        return False
    with opened(path) as handle:
        head = handle.read(1 << 16)
    return not head.startswith(b">") and re.search(rb"^LOCUS ", head, re.MULTILINE) is not None


def read_genbank(paths: Iterable[Path]) -> Iterator[Annotated]:
    """Stream the records of flat files that have their sequence.

    Raises InputError for a file that is none or is damaged, and for a record that comes twice.
    """
    known: set[str] = set()
    for path in paths:
        bare = 0
        with opened(path) as handle:
            records = SeqIO.parse(io.TextIOWrapper(handle, "latin-1"), "genbank")
            while True:
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", BiopythonWarning)
                        warnings.filterwarnings("error", "Premature end|Expected sequence length")
                        record = next(records, None)
                    if record is None:
                        break
                    found = _annotated(record)
                except UndefinedSequenceError:
                    bare += 1
                    continue
                except _ODD as error:
                    raise InputError(
                        f"{path}: no GenBank file of nucleotides, or damaged ({error}); "
                        "fetch it again."
                    ) from None
                if found.contig.id in known:
                    raise InputError(f"{path}: {record.id} comes twice; give each record once.")
                known.add(found.contig.id)
                yield found
        if bare:
            logger.warning("%s: %d records without their sequence are left out", path, bare)


def _annotated(record: SeqRecord) -> Annotated:
    if record.annotations.get("molecule_type") == "protein":
        raise ValueError(f"{record.id} is a protein")
    organism = re.sub(r"\W+", "_", str(record.annotations.get("organism", ""))).strip("_")
    name = f"{organism}#{record.id}" if organism else str(record.id)
    proteins = (
        protein
        for feature in record.features
        if feature.type == "CDS"
        for protein in feature.qualifiers.get("translation", [])[:1]
    )
    return Annotated(Contig(name, "", bytes(record.seq or b"")), " ".join(proteins))


def _matching(
    frames: pa.RecordBatch, contigs: Sequence[Contig], proteins: Mapping[str, str], window: int
) -> pa.RecordBatch:
    """Those of the contigs' frames that match."""
    sequence = {contig.id: contig.sequence for contig in contigs}
    starts = {contig.id: window_starts(len(contig.sequence), window) for contig in contigs}

    def is_plain(contig: str, number: int) -> bool:
        start = int(starts[contig][number - 1])
        return not sequence[contig][start : start + window].upper().translate(None, b"ACGT")

    columns = (frames[name].to_pylist() for name in ("contig", "window", "protein"))
    kept = [
        protein in proteins[contig] and is_plain(contig, number)
        for contig, number, protein in zip(*columns, strict=True)
    ]
    return frames.filter(pa.array(kept, pa.bool_()))


def translate_genbank(paths: Sequence[Path], output: Path, window: int) -> int:
    """Write the matching frames of flat files as a frame table; returns their number.

    Memory holds a batch of records, at least one. Raises InputError as `read_genbank`.
    """
    keep_apart(output, paths)
    proteins: dict[str, str] = {}

    def contigs() -> Iterator[Contig]:
        for record in read_genbank(paths):
            proteins[record.contig.id] = record.proteins
            yield record.contig

    with frame_table(output, window) as table:
        for batch in batches(contigs()):
            table.add_contigs(batch)
            for frames in frame_parts(batch, window):
                table.add_frames(_matching(frames, batch, proteins, window))
            proteins.clear()
    logger.info("%d frames of windows of %d match annotated proteins", table.rows, window)
    return table.rows
