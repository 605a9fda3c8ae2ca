"""Six-frame translation of windows, and the frames that have no stop codon.

One pass over a few megabases of concatenated contigs replaces a loop over records: every position
gets the number of the codon that starts there; the stop codons of each phase become a sorted list;
a frame is open when the first stop at or after its lowest codon lies beyond its highest. Only the
frames kept (about one in five) are then cut out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, count

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from virnucpro_core.schema import FRAMES
from virnucpro_core.sequences.codes import codon_numbers, codon_residues
from virnucpro_core.sequences.fasta import Contig
from virnucpro_core.sequences.windows import Int64Array, windows

BATCH_BASES = 2_000_000
BASES_A_CONTIG = 200
FRAME_NAMES = ("F1", "F2", "F3", "R1", "R2", "R3")

_COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")
_RUN = re.compile(rb"[^*\0]+")


def _open(strand: bytes, low: Int64Array, high: Int64Array) -> NDArray[np.bool_]:
    """Whether frames, given by the starts of their lowest and highest codon, have no stop."""
    stops = np.flatnonzero(np.frombuffer(strand, np.uint8) == ord("*"))
    is_open = np.zeros(low.shape, np.bool_)
    for phase in range(3):
        at = np.append(stops[stops % 3 == phase], np.iinfo(np.int64).max)  # one is always ahead
        mine = (low % 3 == phase) & (low <= high)
        is_open[mine] = at[np.searchsorted(at, low[mine])] > high[mine]
    return is_open


def stop_free_frames(
    contigs: Sequence[Contig], window: int, *, code: int = 1, runs: bool = False
) -> pa.Table:
    """The stop-free frames of contigs' windows, as rows of `schema.FRAMES`.

    A frame's protein is read from its whole codons, leaving out ambiguous ones; its nucleotides
    are bases [f − 1, f + 3·len(protein)) of the window's strand, one more than the codons where
    the strand has it. Both are those of the original's `identify_seq`, quirks included.

    code: the genetic code, by the number of Biopython's table.

    runs: of a window without such a frame, give its longest run of codons without a stop, of
    the earliest of FRAME_NAMES among equals: the protein is the run's, the nucleotides are the
    window's strand as a whole, and the frame's name is in lower case.
    """
    return pa.Table.from_batches(frame_parts(contigs, window, code=code, runs=runs), FRAMES)


def frame_parts(
    contigs: Sequence[Contig], window: int, *, code: int = 1, runs: bool = False
) -> Iterator[pa.RecordBatch]:
    """`stop_free_frames` a part at a time, so that a long contig needs little beside its bases.

    A part is made of whole windows, of about two batches' bases at most; at least one is given.
    """
    text = b"".join(contig.sequence for contig in contigs)  # of a single one, no copy
    lengths = np.array([len(contig.sequence) for contig in contigs], np.int64)
    offsets = np.cumsum(lengths) - lengths
    contig_of, start, end = windows(lengths, window)
    number = np.arange(len(start)) - np.searchsorted(contig_of, contig_of) + 1
    start, end = start + offsets[contig_of], end + offsets[contig_of]
    step = max(1, 2 * BATCH_BASES // window)
    for at in range(0, max(1, len(start)), step):
        own = slice(at, at + step)
        which = contig_of[own], number[own], start[own], end[own]
        yield _frames(contigs, offsets, text, *which, code, runs)


def _frames(
    contigs: Sequence[Contig],
    offsets: Int64Array,
    text: bytes,
    contig_of: Int64Array,
    number: Int64Array,
    start: Int64Array,
    end: Int64Array,
    code: int,
    runs: bool,
) -> pa.RecordBatch:
    """Frames of windows, which lie at [start, end) of the contigs' joined text."""
    origin = int(start[0]) if len(start) else 0
    text = text[origin : int(end[-1]) if len(end) else 0].upper()
    start, end, offsets = start - origin, end - origin, offsets - origin
    size = len(text)
    strands = text, text.translate(_COMPLEMENT)[::-1]
    codons = codon_numbers(text)
    forward, reverse = (codons.translate(table) for table in codon_residues(code))
    residues = forward, reverse[::-1]

    shift = np.arange(3)
    # of fewer than 2 bases, less a shift of 2, the floor division would make a codon of −3
    span = (np.maximum(end - start, 2)[:, None] - shift) // 3 * 3
    begins = np.stack((start, size - end))  # of the windows, on each strand
    lows = begins[:, :, None] + shift
    kept = np.hstack(
        [_open(strand, low, low + span - 3) for strand, low in zip(residues, lows, strict=True)]
    )
    at, spans, lengths = begins.tolist(), span.tolist(), (end - start).tolist()
    rows: list[tuple[str, str, int, str, int, int, bytes, bytes]] = []

    def read(w: int, frame: int) -> bytes:
        """Residues of a window's frame."""
        strand, phase = divmod(frame, 3)
        low = at[strand][w] + phase
        return residues[strand][low : low + spans[w][phase] : 3]

    def add(w: int, frame: int, name: str, a: int, b: int, bases: bytes, protein: bytes) -> None:
        """Add a row. a, b: on the frame's strand."""
        contig, n, offset = contigs[contig_of[w]], int(number[w]), int(offsets[contig_of[w]])
        a, b = (a, b) if frame < 3 else (size - b, size - a)
        named = f"{contig.id}_chunk_{n}{name}"
        rows.append((named, contig.id, n, name, a - offset, b - offset, bases, protein))

    for w, frames in enumerate(kept.tolist()):
        found = False
        for frame in compress(count(), frames):
            protein = read(w, frame).replace(b"\0", b"")
            if not protein:
                continue
            found = True
            strand, phase = divmod(frame, 3)
            a = at[strand][w] + phase
            b = min(a + 3 * len(protein) + 1, a - phase + lengths[w])
            add(w, frame, FRAME_NAMES[frame], a, b, strands[strand][a:b], protein)
        if runs and not found:
            every = ((run, frame) for frame in range(6) for run in _RUN.finditer(read(w, frame)))
            if longest := max(every, key=lambda pair: len(pair[0][0]), default=None):
                run, frame = longest
                strand, phase = divmod(frame, 3)
                a = at[strand][w]
                whole = strands[strand][a : a + lengths[w]]
                first, last = (a + phase + 3 * codon for codon in run.span())
                add(w, frame, FRAME_NAMES[frame].lower(), first, last, whole, run[0])
    columns = zip(*rows, strict=True) if rows else ((),) * len(FRAMES)
    return pa.record_batch(
        [pa.array(column, field.type) for column, field in zip(columns, FRAMES, strict=True)],
        schema=FRAMES,
    )


def is_run(frames: pa.Array) -> pa.Array:
    """Of names of frames, which are those of runs."""
    return pc.utf8_is_lower(frames.cast(pa.string()))


def batches(contigs: Iterable[Contig], bases: int = BATCH_BASES) -> Iterator[list[Contig]]:
    """Group contigs into lists of about `bases` bases, at least one contig each.

    A contig counts as BASES_A_CONTIG more than it has, what its names cost.
    """
    batch: list[Contig] = []
    size = 0
    for contig in contigs:
        batch.append(contig)
        size += len(contig.sequence) + BASES_A_CONTIG
        if size >= bases:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
