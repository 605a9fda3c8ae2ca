"""Another tool's scores of contigs, out of the table that it wrote."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from virnucpro_core.errors import InputError
from virnucpro_core.files import blamed
from virnucpro_core.inputs import missing

CONTIG_COLUMNS = ("contig", "contig_id", "seq_name", "sequence_name", "sequence name", "name", "id")
SCORE_COLUMNS = ("score", "virus_score", "viral_score", "phage_score", "mean_virus_score")
"""Columns of another tool's table, in lower case, the first that is there, unless named."""


class Table(NamedTuple):
    """Another tool's scores: of contigs, by id."""

    tool: str
    scores: Mapping[str, float]

    @classmethod
    def read(cls, given: str) -> Table:
        """From NAME=FILE or NAME=FILE:CONTIG,SCORE: a TSV or CSV, its columns, named or known.

        A contig is known by its id up to the first blank. An empty score, nan and NA are none.
        InputError for a table that has no such columns, or anything else for a score.
        """
        name, equals, rest = given.partition("=")
        path, colon, columns = rest.rpartition(":")
        if not colon or columns.count(",") != 1:
            path, columns = rest, ""
        if not equals or not name or not path:
            raise InputError(f"--table {given}: give NAME=FILE or NAME=FILE:CONTIG,SCORE.")
        file = Path(path)
        try:
            with blamed(file), file.open(newline="", encoding="utf-8-sig") as handle:
                header = handle.readline().rstrip("\r\n")
                delimiter = "\t" if "\t" in header else ","
                names = next(csv.reader([header], delimiter=delimiter), [])
                at = _columns(names, columns, given)
                rows = csv.reader(handle, delimiter=delimiter)
                return cls(name, dict(_scores(rows, *at, file)))
        except FileNotFoundError:
            raise missing(file) from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{file}: is no TSV or CSV ({error}); give a tool's table.") from None


def _columns(names: list[str], wanted: str, given: str) -> tuple[int, int]:
    """Where the contig and the score stand."""
    lower = [name.strip().lower() for name in names]
    found = []
    for known in (
        ([one] for one in wanted.split(",")) if wanted else (CONTIG_COLUMNS, SCORE_COLUMNS)
    ):
        at = [lower.index(name.strip().lower()) for name in known if name.strip().lower() in lower]
        if not at:
            raise InputError(
                f"--table {given}: has no column {' or '.join(map(repr, known))} but "
                f"{', '.join(map(repr, names))}; name two of them, NAME=FILE:CONTIG,SCORE."
            )
        found.append(at[0])
    return found[0], found[1]


def _scores(
    rows: Iterator[list[str]], contig: int, score: int, file: Path
) -> Iterator[tuple[str, float]]:
    known: set[str] = set()
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        try:
            name, text = row[contig].split()[0], row[score].strip()
            value = math.nan if text.lower() in ("", "na") else float(text)
        except (IndexError, ValueError):
            raise InputError(
                f"{file}: line {number} has no contig and number in columns {contig + 1} and "
                f"{score + 1}; mend it, or name other columns."
            ) from None
        if name in known:
            raise InputError(f"{file}: contig {name!r} is there twice; keep one score of each.")
        known.add(name)
        yield name, value
