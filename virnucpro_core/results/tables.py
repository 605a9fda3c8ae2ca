"""The files of a classified sample, written a batch of contigs at a time."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import compress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from virnucpro_core.errors import InputError
from virnucpro_core.files import blame_machine, made, written_aside
from virnucpro_core.parquet import BATCH_ROWS, table_writer
from virnucpro_core.results.calls import CALLS, Float32Array, WindowCalls, frame_is_virus
from virnucpro_core.results.kept import MADE
from virnucpro_core.results.legacy import HIGHEST_SCORE, PREDICTIONS, HighestScores, Predictions
from virnucpro_core.schema import CONTIGS, SCORED, WINDOWS
from virnucpro_core.sequences.frames import is_run

RESULTS = (
    "contigs.tsv",
    "windows.tsv",
    "frames.parquet",
    "viral.fasta.gz",
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


class ResultFiles:
    """The result files of one sample, each whole or absent; summary.json appears last.

    Use as a context manager, and call `finish` once at its end; on an error no file is left.
    made: what the scores were made with, kept in the frame table's footer.
    """

    def __init__(self, out: Path, made: Mapping[str, Any]) -> None:
        self._out = out
        self._made = made
        self._stack = ExitStack()
        self._highest = HighestScores()
        self._texts: list[TextIO] = []

    def __enter__(self) -> ResultFiles:
        with ExitStack() as stack:  # files are renamed in reverse order
            stack.enter_context(made(self._out))
            self._summary = self._text_file(stack, "summary.json")
            self._contigs = self._text_file(stack, "contigs.tsv")
            self._windows = self._text_file(stack, "windows.tsv")
            self._predictions = Predictions(self._text_file(stack, PREDICTIONS))
            self._highest_csv = self._text_file(stack, HIGHEST_SCORE)
            aside = stack.enter_context(written_aside(self._out / "viral.fasta.gz"))
            raw = stack.enter_context(aside.open("wb"))
            # neither name nor time within: the same contigs give the same bytes
            self._viral = stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0))
            aside = stack.enter_context(written_aside(self._out / "frames.parquet"))
            self._frames = stack.enter_context(table_writer(aside, SCORED))
            self._contigs.write("\t".join(CONTIGS.names) + "\n")
            self._windows.write("\t".join(WINDOWS) + "\n")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _text_file(self, stack: ExitStack, name: str) -> TextIO:
        aside = stack.enter_context(written_aside(self._out / name))
        self._texts.append(stack.enter_context(aside.open("w", encoding="utf-8", newline="\n")))
        return self._texts[-1]

    def write_frames(self, frames: pa.RecordBatch, scores: Float32Array) -> None:
        """Rows of a frame table with their scores (N, 2) of (other, virus)."""
        call = np.where(frame_is_virus(scores), "virus", "other").astype(object)
        columns = [*frames.columns, *(pa.array(column) for column in (*scores.T, call))]
        self._frames.write(pa.record_batch(columns, schema=SCORED))
        whole = pc.invert(is_run(frames["frame"]))
        ids = frames["frame_id"].filter(whole).to_pylist()
        self._predictions.write(ids, scores[whole.to_numpy(zero_copy_only=False)])

    def write_contigs(
        self, inventory: pa.RecordBatch, calls: WindowCalls, contigs: pa.RecordBatch
    ) -> None:
        """A batch of the inventory, the calls of all its windows, and its rows of `CONTIGS`."""
        names = inventory["contig"].to_pylist()
        for at in range(0, len(calls.contig), BATCH_ROWS):  # a chromosome has a million windows
            self._write_windows(names, calls[at : at + BATCH_ROWS])
        _write_lines(self._contigs, *map(_column, contigs.columns))
        for i in np.flatnonzero(pc.equal(contigs["call"], "virus")).tolist():
            header = f"{names[i]} {inventory['description'][i]}".rstrip()
            self._viral.write(f">{header}\n".encode())
            self._viral.write(inventory["sequence"][i].as_buffer())
            self._viral.write(b"\n")

    def _write_windows(self, names: Sequence[str], calls: WindowCalls) -> None:
        ids = calls.ids(names)
        call = np.where(calls.is_virus, "virus", np.where(calls.called, "other", "no_call"))
        _write_lines(
            self._windows,
            ids,
            [names[i] for i in calls.contig.tolist()],
            *(x.tolist() for x in (calls.number, calls.start, calls.end, calls.frames)),
            _text(calls.score_other),
            _text(calls.score_virus),
            call.tolist(),
        )
        called = calls.frames > 0
        self._highest.add(list(compress(ids, called.tolist())), calls.is_virus[called])

    def finish(self, summary: dict[str, object]) -> None:
        """Write what needs all contigs: the original's sorted file, and summary.json."""
        self._highest.write(self._highest_csv)
        self._summary.write(json.dumps(summary, indent=2) + "\n")
        # what a full disk may refuse is on disk before anything that was there goes
        self._frames.finish({MADE: json.dumps(self._made)})
        self._viral.close()
        for handle in self._texts:
            handle.flush()
            os.fsync(handle.fileno())
        # an older run's summary must not vouch for files that are about to change
        (self._out / "summary.json").unlink(missing_ok=True)


_ALWAYS = ("contig", "length", "windows", "frames", "viral_windows", "call")
"""Columns of contigs.tsv that have a value in every row."""
_SCORE_COLUMNS = ("viral_fraction", "max_virus_score", "mean_virus_score")


def contig_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Stream a contigs.tsv as rows of `calls.CONTIGS`; InputError when it is none."""
    try:
        reader = pacsv.open_csv(
            path,
            parse_options=pacsv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pacsv.ConvertOptions(
                column_types=CONTIGS,
                include_columns=CONTIGS.names,
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        for batch in reader:
            if any(batch[name].null_count for name in _ALWAYS):
                raise ValueError("a cell is empty")
            if not set(batch["call"].unique().to_pylist()) <= set(CALLS):
                raise ValueError("a call is none of ours")
            called = pc.not_equal(batch["call"], "no_call")
            for name in _SCORE_COLUMNS:  # of what has a call, and of nothing else
                share = pc.and_(pc.greater_equal(batch[name], 0), pc.less_equal(batch[name], 1))
                if not pc.fill_null(share, False).equals(called):
                    raise ValueError(f"a {name} does not fit its call")
            score = pc.and_(pc.greater_equal(batch["score"], 0), pc.less_equal(batch["score"], 1))
            if not pc.all(pc.fill_null(score, True)).as_py():
                raise ValueError("a score is no probability")
            yield batch
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; classify the sample again.") from None
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        blame_machine(error, path)
        said = str(error).splitlines()[0]
        raise InputError(
            f"{path}: is no contigs.tsv of ours ({said:.200}); classify again."
        ) from None


def read_contigs(path: Path) -> pa.Table:
    """The table of contigs (`calls.CONTIGS`) out of a contigs.tsv; InputError when it is none."""
    return pa.Table.from_batches(contig_batches(path), CONTIGS)
