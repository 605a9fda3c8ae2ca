"""The files of a classified sample, written a batch of contigs at a time."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import compress
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from virnucpro_core.errors import InputError
from virnucpro_core.files import blame_machine, made, written_aside
from virnucpro_core.parquet import BATCH_ROWS, inventory_batches, table_writer
from virnucpro_core.results.calls import CALLS, Float32Array, WindowCalls, frame_is_virus
from virnucpro_core.results.contigs import Region
from virnucpro_core.results.kept import MADE
from virnucpro_core.results.legacy import HIGHEST_SCORE, PREDICTIONS, HighestScores, Predictions
from virnucpro_core.schema import CONTIGS, HALVES, REGIONS, SCORED, WINDOWS
from virnucpro_core.sequences.frames import is_run

_GFF_SAFE = "".join(map(chr, range(33, 127))).translate(str.maketrans("", "", ";=&,%>"))

_WRITTEN = pa.schema([*SCORED, *HALVES])

REPORT = "report.html"
"""The page of these results alone, which `predict` makes."""

RESULTS = (
    "contigs.tsv",
    "windows.tsv",
    "frames.parquet",
    "viral.fasta.gz",
    "regions.tsv",
    "regions.gff3",
    "regions.fasta.gz",
    "contigs.parquet",
    PREDICTIONS,
    HIGHEST_SCORE,
    "summary.json",
)


def _text(scores: Float32Array) -> list[str]:
    """Scores as str() of a numpy float32, the shortest text that reads back; -inf as nothing."""
    return ["" if np.isneginf(score) else str(score) for score in scores]


def _column(values: pa.Array) -> Sequence[object]:
    if pa.types.is_floating(values.type):
        return _text(values.fill_null(-np.inf).to_numpy())
    return ["" if value is None else value for value in values.to_pylist()]


def _write_lines(handle: TextIO, *columns: Sequence[object]) -> None:
    handle.writelines("\t".join(map(str, row)) + "\n" for row in zip(*columns, strict=True))


@contextmanager
def result_files(out: Path, made_with: Mapping[str, Any]) -> Iterator[ResultFiles]:
    """The result files of one sample, to be finished in here; on an error none is left.

    made_with: what the scores were made with, kept in the frame table's footer.
    """
    with made(out), ExitStack() as stack:
        yield ResultFiles(out, made_with, stack)


class ResultFiles:
    """The result files of one sample, each whole or absent; summary.json appears last.

    stack: at its end files are renamed, the last that was opened first.
    """

    def __init__(self, out: Path, made_with: Mapping[str, Any], stack: ExitStack) -> None:
        self._out, self._made_with, self._stack = out, made_with, stack
        self._highest = HighestScores()
        self._texts: list[TextIO] = []
        self._summary = self._text_file("summary.json")
        self._contigs = self._text_file("contigs.tsv")
        self._windows = self._text_file("windows.tsv")
        self._predictions = Predictions(self._text_file(PREDICTIONS))
        self._highest_csv = self._text_file(HIGHEST_SCORE)
        self._regions = self._text_file("regions.tsv")
        self._gff = self._text_file("regions.gff3")
        self._viral = self._fasta("viral.fasta.gz")
        self._stretches = self._fasta("regions.fasta.gz")
        self._inventory = self._aside("contigs.parquet")
        self._inventory.touch()
        self._frames = stack.enter_context(table_writer(self._aside("frames.parquet"), _WRITTEN))
        self._contigs.write("\t".join(CONTIGS.names) + "\n")
        self._windows.write("\t".join(WINDOWS) + "\n")

    def _aside(self, name: str) -> Path:
        return self._stack.enter_context(written_aside(self._out / name))

    def _text_file(self, name: str) -> TextIO:
        file = self._aside(name).open("w", encoding="utf-8", newline="\n")
        self._texts.append(self._stack.enter_context(file))
        return file

    def _fasta(self, name: str) -> gzip.GzipFile:
        raw = self._stack.enter_context(self._aside(name).open("wb"))
        # neither name nor time within: the same contigs give the same bytes
        return self._stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0))

    def write_frames(self, frames: pa.RecordBatch, scores: Float32Array) -> None:
        """Rows of a frame table with their scores (N, 4), as `kept.Scores` has them."""
        call = np.where(frame_is_virus(scores), "virus", "other").astype(object)
        other, virus, *halves = scores.T
        columns = (pa.array(column) for column in (other, virus, call, *halves))
        self._frames.write(pa.record_batch([*frames.columns, *columns], schema=_WRITTEN))
        whole = pc.invert(is_run(frames["frame"]))
        ids = frames["frame_id"].filter(whole).to_pylist()
        self._predictions.write(ids, scores[whole.to_numpy(zero_copy_only=False), :2])

    def write_windows(self, inventory: pa.RecordBatch, calls: WindowCalls) -> None:
        """A batch of the inventory's windows."""
        names = inventory["contig"].to_pylist()
        for at in range(0, len(calls.contig), BATCH_ROWS):  # a chromosome has a million windows
            part = calls[at : at + BATCH_ROWS]
            ids = part.ids(names)
            call = np.where(part.is_virus, "virus", np.where(part.called, "other", "no_call"))
            _write_lines(
                self._windows,
                ids,
                [names[i] for i in part.contig.tolist()],
                *(x.tolist() for x in (part.number, part.start, part.end, part.frames)),
                _text(part.score_other),
                _text(part.score_virus),
                call.tolist(),
            )
            framed = part.frames > 0
            self._highest.add(list(compress(ids, framed.tolist())), part.is_virus[framed])

    def write_contigs(
        self, contigs: pa.Table, proviruses: Sequence[Region], inventory: Path
    ) -> None:
        """All rows of `CONTIGS`, in the inventory's order, and what of their bases is viral."""
        for batch in contigs.to_batches(BATCH_ROWS):
            _write_lines(self._contigs, *map(_column, batch.columns))
        of: dict[int, list[Region]] = {}
        for region in proviruses:
            of.setdefault(region.contig, []).append(region)
        self._regions.write("\t".join(REGIONS.names) + "\n")
        self._gff.write("##gff-version 3\n")
        is_virus = pc.equal(contigs["call"], "virus").to_numpy()
        score, windows = (contigs[n].to_numpy() for n in ("score", "scored_windows"))
        row = 0
        for batch in inventory_batches(inventory):
            for i in range(batch.num_rows):
                regions = of.get(row, [])
                if is_virus[row]:
                    length = batch["length"][i].as_py()
                    regions = [Region(row, 0, length, int(windows[row]), float(score[row]))]
                    self._write_fasta(self._viral, batch, i, regions[0], "")
                for region in regions:
                    self._write_region(batch, i, region, whole=is_virus[row])
                row += 1
        shutil.copyfile(inventory, self._inventory)

    def _write_fasta(
        self, handle: gzip.GzipFile, batch: pa.RecordBatch, i: int, region: Region, part: str
    ) -> None:
        header = f"{batch['contig'][i]}{part} {batch['description'][i]}".rstrip()
        handle.write(f">{header}\n".encode())
        handle.write(memoryview(batch["sequence"][i].as_buffer())[region.start : region.end])
        handle.write(b"\n")

    def _write_region(self, batch: pa.RecordBatch, i: int, region: Region, *, whole: bool) -> None:
        """A contig, or a provirus of it, whose id is geNomad's: 1-based, both ends included."""
        name, kind = batch["contig"][i].as_py(), "whole" if whole else "provirus"
        score = f"{region.score:.4g}"
        length = region.end - region.start
        row = (name, region.start, region.end, length, region.windows, score, kind)
        self._regions.write("\t".join(map(str, row)) + "\n")
        where = quote(name, safe=_GFF_SAFE)
        what = "viral_sequence" if whole else "proviral_region"  # of Sequence Ontology
        part = "" if whole else f"|provirus_{region.start + 1}_{region.end}"
        place = (where, "virnucpro", what, region.start + 1, region.end, score, ".", ".")
        self._gff.write(
            "\t".join(map(str, place)) + f"\tID={where}{part};windows={region.windows}\n"
        )
        self._write_fasta(self._stretches, batch, i, region, part)

    def finish(self, summary: dict[str, object]) -> None:
        """Write what needs all contigs: the original's sorted file, and summary.json."""
        self._highest.write(self._highest_csv)
        self._summary.write(json.dumps(summary, indent=2) + "\n")
        # what a full disk may refuse is on disk before anything that was there goes
        self._frames.finish({MADE: json.dumps(self._made_with)})
        self._viral.close()
        self._stretches.close()
        for handle in self._texts:
            handle.flush()
            os.fsync(handle.fileno())
        # an older run's summary must not vouch for files that are about to change, nor its page
        for name in ("summary.json", REPORT):
            (self._out / name).unlink(missing_ok=True)


_SHARES = ("viral_fraction", "max_virus_score", "mean_virus_score", "score", "probability", "fdr")
_CALLED = _SHARES[:4]
"""Of a contig that has a call, always."""
_ALWAYS = [name for name in CONTIGS.names if name not in (*_SHARES, "reason")]
"""Columns of contigs.tsv that have a value in every row."""


def contig_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Stream a contigs.tsv as rows of `calls.CONTIGS`; InputError when it is none."""
    with _read(path):
        for batch in pacsv.open_csv(path, **_options(CONTIGS)):
            if any(batch[name].null_count for name in _ALWAYS):
                raise ValueError("a cell is empty")
            if not set(batch["call"].unique().to_pylist()) <= set(CALLS):
                raise ValueError("a call is none of ours")
            called = pc.not_equal(batch["call"], "no_call")
            for name in _SHARES:
                share = pc.and_(pc.greater_equal(batch[name], 0), pc.less_equal(batch[name], 1))
                if not pc.all(pc.fill_null(share, True)).as_py():
                    raise ValueError(f"a {name} is no share")
                if name in _CALLED and pc.any(pc.and_(called, pc.is_null(batch[name]))).as_py():
                    raise ValueError(f"a {name} does not fit its call")
            yield batch


def _options(schema: pa.Schema) -> dict[str, Any]:
    return {
        "parse_options": pacsv.ParseOptions(delimiter="\t", quote_char=False),
        "convert_options": pacsv.ConvertOptions(
            column_types=schema,
            include_columns=schema.names,
            null_values=[""],
            strings_can_be_null=True,
        ),
    }


@contextmanager
def _read(path: Path) -> Iterator[None]:
    """InputError for what goes wrong in reading a table."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; classify the sample again.") from None
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        blame_machine(error, path)
        said = str(error).splitlines()[0]
        raise InputError(
            f"{path}: is no {path.name} of ours ({said:.200}); classify again."
        ) from None


def read_regions(path: Path) -> list[dict[str, Any]]:
    """The rows of a regions.tsv, none where there is no such file; InputError for another file."""
    if not path.exists():
        return []
    with _read(path):
        table = pacsv.read_csv(path, **_options(REGIONS))
        if any(column.null_count for column in table.columns):
            raise ValueError("a cell is empty")
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows


def read_contigs(path: Path) -> pa.Table:
    """The table of contigs (`calls.CONTIGS`) out of a contigs.tsv; InputError when it is none."""
    return pa.Table.from_batches(contig_batches(path), CONTIGS)
