"""Stage `translate`: a FASTA of contigs to a table of stop-free frames."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from virnucpro_core.files import keep_apart, written_aside
from virnucpro_core.parquet import FRAME_FORMAT, TableWriter, table_writer
from virnucpro_core.progress import Progress, counted
from virnucpro_core.schema import FRAMES
from virnucpro_core.sequences.codes import AUTO, choose, genetic_code
from virnucpro_core.sequences.fasta import Contig, read_fasta
from virnucpro_core.sequences.frames import batches, frame_parts, is_run
from virnucpro_core.sequences.pace import about_bases
from virnucpro_core.sequences.windows import window_starts

logger = logging.getLogger("virnucpro.translate")

FASTA_WIDTH = 60
"""Line width of Biopython's FASTA writer, which the original uses for its chunks."""


def _chunks(contig: Contig, window: int) -> Iterator[bytes]:
    for number, start in enumerate(window_starts(len(contig.sequence), window).tolist(), 1):
        bases = contig.sequence[start : start + window]
        yield f">{contig.id}_chunk_{number}\n".encode()
        for at in range(0, len(bases), FASTA_WIDTH):
            yield bases[at : at + FASTA_WIDTH] + b"\n"


class _OriginalFasta:
    """The three FASTA files that the original writes beside its input."""

    def __init__(self, folder: Path, window: int, stack: ExitStack) -> None:
        def create(name: str) -> BinaryIO:
            aside = stack.enter_context(written_aside(folder / name))
            return stack.enter_context(aside.open("wb"))

        self.window = window
        self.chunks = create(f"chunked{window}.fa")
        self.nucleotides = create("identified_nucleotide.fa")
        self.proteins = create("identified_protein.faa")

    def write_chunks(self, contigs: Sequence[Contig]) -> None:
        for contig in contigs:
            self.chunks.writelines(_chunks(contig, self.window))

    def write_frames(self, frames: pa.RecordBatch) -> None:
        ids = frames["frame_id"].to_pylist()
        for handle, column in ((self.nucleotides, "nucleotide"), (self.proteins, "protein")):
            handle.writelines(
                f">{name}\n{sequence}\n".encode()
                for name, sequence in zip(ids, frames[column].to_pylist(), strict=True)
            )


class FrameTable:
    """A frame table that is being written.

    Its digest is a sha256 of its content and of its genetic code, however it is cut into batches.
    Contigs without a frame count too, so that no two pieces of a sample have one digest.
    """

    TEXT = ("frame_id", "nucleotide", "protein")

    def __init__(self, writer: TableWriter, window: int, setting: str, runs: bool) -> None:
        self._writer = writer
        self._said = {
            "format": FRAME_FORMAT,
            "window": str(window),
            "runs": "yes" if runs else "no",
            "genetic_code": setting,
        }
        self._parts = {name: hashlib.sha256() for name in ("contigs", "lengths", *self.TEXT)}
        self._parts["contigs"].update(f"genetic code {setting}\n".encode())
        self.rows = 0
        self.read_with: Counter[str] = Counter()

    def add_contigs(self, contigs: Sequence[Contig], code: int = 1) -> None:
        """Contigs whose frames come next, or have none, and the genetic code of these."""
        for contig in contigs:
            self._parts["contigs"].update(f"{contig.id}\t{len(contig.sequence)}\n".encode())
        self.read_with[str(code)] += len(contigs)

    def add_frames(self, frames: pa.RecordBatch) -> None:
        """Rows of `schema.FRAMES`."""
        self._writer.write(frames)
        self.rows += frames.num_rows
        if frames.num_rows:
            lengths = np.column_stack([pc.binary_length(frames[name]) for name in self.TEXT])
            self._parts["lengths"].update(lengths.tobytes())
            for name in self.TEXT:
                self._parts[name].update(frames[name].buffers()[2])

    def finish(self) -> None:
        """Write the footer."""
        digest = hashlib.sha256(b"".join(part.digest() for part in self._parts.values()))
        said = {
            **self._said,
            "read_with": json.dumps(self.read_with),
            "digest": digest.hexdigest(),
        }
        self._writer.finish({f"virnucpro.{name}": text for name, text in said.items()})


@contextmanager
def frame_table(
    output: Path, window: int, setting: str = "1", *, runs: bool = False
) -> Iterator[FrameTable]:
    """Write a frame table, which is whole or absent. setting: the genetic code's."""
    options = {
        "use_dictionary": ["contig", "frame"],
        "write_statistics": ["contig", "window", "start", "end"],
    }
    with written_aside(output) as aside, table_writer(aside, FRAMES, **options) as writer:
        table = FrameTable(writer, window, setting, runs)
        yield table
        table.finish()


def by_code(contigs: list[Contig], setting: str) -> Iterator[tuple[int, list[Contig]]]:
    """Runs of contigs that are read with one code, and that code."""
    codes = choose(contigs) if setting == AUTO else [int(setting)] * len(contigs)
    for code, run in groupby(zip(codes, contigs, strict=True), lambda pair: pair[0]):
        yield code, [contig for _, contig in run]


def translate(
    fasta: Sequence[Path],
    output: Path,
    window: int,
    fasta_dir: Path | None = None,
    code: int | str = 1,
    *,
    runs: bool = False,
) -> int:
    """Write the stop-free frames of every window of the contigs as `schema.FRAMES`.

    With `fasta_dir`, also `chunked{window}.fa`, `identified_nucleotide.fa` and
    `identified_protein.faa` as the original writes them. Memory does not grow with the input.
    runs: as of `stop_free_frames`; those three files do not have them.

    code: the genetic code, as `codes.genetic_code` takes it; `auto` chooses one a contig.

    Returns the number of frames. Raises InputError as `read_fasta` does, for an unknown code, and
    for an output that is an input.
    """
    setting = genetic_code(code)
    keep_apart(output, fasta)
    with ExitStack() as stack:
        original = _OriginalFasta(fasta_dir, window, stack) if fasta_dir else None
        table = stack.enter_context(frame_table(output, window, setting, runs=runs))
        about = about_bases(fasta) or None
        progress = stack.enter_context(Progress("translate", about, "bases"))
        for batch in batches(read_fasta(fasta)):
            if original:
                original.write_chunks(batch)
            for own, contigs in by_code(batch, setting):
                table.add_contigs(contigs, own)
                for contig in contigs if setting == AUTO and own != 1 else ():
                    logger.debug("%s is read with code %d", contig.id, own)
                for frames in frame_parts(contigs, window, code=own, runs=runs):
                    table.add_frames(frames)
                    if original:
                        original.write_frames(frames.filter(pc.invert(is_run(frames["frame"]))))
            progress.advance(sum(len(contig.sequence) for contig in batch))
    said = counted(table.read_with.total(), "contig")
    what = "stop-free frames and runs" if runs else "stop-free frames"
    logger.info("%s, %d %s of windows of %d", said, table.rows, what, window)
    if setting == AUTO:
        counts = (f"{count} with code {own}" for own, count in table.read_with.items())
        logger.info("contigs read: %s", ", ".join(counts))
    return table.rows
