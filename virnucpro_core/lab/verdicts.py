"""Who calls which contigs a virus: a run of ours, geNomad, VirSorter2, or any other table."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from virnucpro_core.errors import InputError
from virnucpro_core.files import blame_machine
from virnucpro_core.inputs import missing
from virnucpro_core.results.calls import CALLS
from virnucpro_core.results.kept import read_summary

SCORES = ("score", "viral_fraction")
"""Columns of a contigs.tsv that can be what calls were made by: the first that is there is."""

EVIDENCE = ("scored_windows", "frames")
"""Columns that say how much a score rests on: the first that is there does."""

PROVIRUS = "provirus"
"""The reason of a contig that another tool lists a part of, and not all."""

VERDICTS = pa.schema(
    [
        ("contig", pa.string()),
        ("length", pa.int64()),
        ("call", pa.string()),
        ("score", pa.float64()),
        ("evidence", pa.int64()),
        ("reason", pa.string()),
    ]
)


class Verdicts(NamedTuple):
    """Calls of contigs, rows of VERDICTS, and what they are.

    score, evidence: the columns that those came from, None without. complete: every contig of the
    input has a row; else only viruses are listed, as other tools do.
    """

    path: Path
    tool: str
    table: pa.Table
    score: str
    evidence: str | None
    complete: bool


class _Tool(NamedTuple):
    """How another tool's table tells a contig; what `part` matches, less group 1, is a part."""

    name: str
    contig: str
    score: str
    part: re.Pattern[str]


_TOOLS = (
    _Tool("geNomad", "seq_name", "virus_score", re.compile(r"\|provirus_\d+_\d+()?$")),
    _Tool("VirSorter2", "seqname", "max_score", re.compile(r"\|\|(full|lt2gene)?(\d+_partial)?$")),
)
_NO_PART = re.compile(r"(?!)")
_TAB = pacsv.ParseOptions(delimiter="\t", quote_char=False)


def _read(path: Path, columns: Mapping[str, pa.DataType] | None = None) -> pa.Table:
    """Some columns of a TSV; without any, none of its rows, for the header's sake."""
    options = pacsv.ConvertOptions(
        column_types=columns or {},
        include_columns=list(columns or ()),
        null_values=["", "nan", "NaN", "NA"],
        strings_can_be_null=True,
    )
    try:
        if columns is None:
            return pacsv.open_csv(path, parse_options=_TAB).schema.empty_table()
        return pacsv.read_csv(path, parse_options=_TAB, convert_options=options)
    except FileNotFoundError:
        raise missing(path) from None
    except (OSError, ValueError, pa.ArrowException) as error:
        blame_machine(error, path)
        said = str(error).splitlines()[0]
        raise InputError(f"{path}: is no table parted by tabs ({said:.200}).") from None


def read_verdicts(
    path: Path, columns: Sequence[str] | None = None, min_score: float = 0.5
) -> Verdicts:
    """The calls in a folder of results, a contigs.tsv, or another tool's table.

    columns: names of the contig's and the score's column in a table of no kind that is known; what
    has at least min_score there is a virus. Raises InputError for a folder without finished results
    of this version, and for a table without the columns.
    """
    if path.is_dir():
        if read_summary(path) is None:
            raise InputError(f"{path}: holds no finished results; name a folder with summary.json.")
        path = path / "contigs.tsv"
    names = _read(path).schema.names
    if columns is not None and set(columns) <= set(names):
        return _listed(path, _Tool("table", columns[0], columns[1], _NO_PART), min_score)
    if {"contig", "call"} <= set(names):
        return _ours(path, names)
    for tool in _TOOLS:
        if {tool.contig, tool.score} <= set(names):
            return _listed(path, tool, -math.inf)
    known = "; ".join(f"{tool.contig} and {tool.score} ({tool.name})" for tool in _TOOLS)
    raise InputError(
        f"{path}: has neither the columns contig and call, nor {known}; name its own with "
        "--columns contig,score."
    )


def _ours(path: Path, names: Sequence[str]) -> Verdicts:
    score = next((name for name in SCORES if name in names), None)
    evidence = next((name for name in EVIDENCE if name in names), None)
    if score is None or not {"length", "reason"} <= set(names):
        raise InputError(f"{path}: has no scores of this version; classify again.")
    source = {
        "contig": "contig",
        "length": "length",
        "call": "call",
        "score": score,
        "evidence": evidence,
        "reason": "reason",
    }
    kinds = {str(source[field.name]): field.type for field in VERDICTS if source[field.name]}
    table = _read(path, kinds)
    columns = [
        table[name].combine_chunks() if (name := source[field.name]) else None for field in VERDICTS
    ]
    nothing = pa.nulls(table.num_rows, pa.int64())
    table = pa.table([nothing if c is None else c for c in columns], schema=VERDICTS)
    if table["contig"].null_count or not set(table["call"].unique().to_pylist()) <= set(CALLS):
        raise InputError(f"{path}: is no contigs.tsv of ours (a call is none); classify again.")
    if pc.count_distinct(table["contig"]).as_py() != table.num_rows:
        raise InputError(f"{path}: has a contig twice; classify again.")
    about = read_summary(path.parent) or {}
    tool = ", ".join(str(about[key]) for key in ("model", "precision") if key in about)
    return Verdicts(path, tool or "virnucpro", table, score, evidence, complete=True)


def _listed(path: Path, tool: _Tool, min_score: float) -> Verdicts:
    """Of a table that lists viruses: rows of parts of a contig are no call on all of it."""
    table = _read(path, {tool.contig: pa.string(), tool.score: pa.float64()})
    best: dict[str, tuple[bool, float]] = {}
    for name, score in zip(*(table[c].to_pylist() for c in table.schema.names), strict=True):
        if name is None:
            raise InputError(f"{path}: a row has no {tool.contig}.")
        part = tool.part.search(name)
        contig = name[: part.start()] if part else name
        row = (part is None or bool(part[1]), 0.0 if score is None else score)
        best[contig] = max(row, best.get(contig, row))
    rows = {
        "contig": list(best),
        "call": ["virus" if whole and s >= min_score else "other" for whole, s in best.values()],
        "score": [score for _, score in best.values()],
        "reason": [None if whole else PROVIRUS for whole, _ in best.values()],
    }
    columns = [pa.array(rows.get(f.name, [None] * len(best)), f.type) for f in VERDICTS]
    return Verdicts(
        path, tool.name, pa.table(columns, schema=VERDICTS), tool.score, None, complete=False
    )
