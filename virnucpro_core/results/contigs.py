"""Calls of windows → one score, one order and a call of each contig."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from virnucpro_core.models.rule import PRIOR, ContigRule, Float64Array
from virnucpro_core.parquet import text_of
from virnucpro_core.results.calls import WindowCalls
from virnucpro_core.results.criteria import Criteria
from virnucpro_core.results.prevalence import (
    LEAST_CONTIGS,
    corrected,
    estimated_share,
    false_discovery,
)
from virnucpro_core.results.regions import viral_segments
from virnucpro_core.schema import CONTIGS
from virnucpro_core.sequences.windows import Int64Array

DECIDED = ("probability", "fdr", "regions", "call")
EVIDENCE = pa.schema([field for field in CONTIGS if field.name not in DECIDED])
"""What is known of a contig by its own windows; reason says why none was read."""

_CODON = re.compile("[ACGTacgt]{3}")
_IS_BASE = np.isin(np.arange(256), list(b"ACGTacgt"))


class Region(NamedTuple):
    """A viral stretch [start, end) of a contig, known by its row, and what speaks for it."""

    contig: int
    start: int
    end: int
    windows: int
    score: float


def _digits(values: Float64Array) -> Float64Array:
    """Rounded to four digits: a score's fifth depends on the order of a sum."""
    result = values.copy()
    positive = values > 0
    unit = 10.0 ** (np.floor(np.log10(values[positive])) - 3)
    result[positive] = np.round(values[positive] / unit) * unit
    return result


def _reason(sequence: str, starts: Int64Array, ends: Int64Array) -> str:
    """Why no window was read. The three frames of a window read every codon that lies in it."""
    if len(sequence) < 3:
        return "too_short"
    spans = zip(starts.tolist(), ends.tolist(), strict=True)
    readable = any(_CODON.search(sequence, start, end) for start, end in spans)
    return "no_stop_free_frame" if readable else "ambiguous"


def _evidence(sequences: pa.Array, calls: WindowCalls) -> Int64Array:
    """Bases of each contig that are A, C, G or T and lie in a window that was read: int64 (N)."""
    ends, text = text_of(sequences)
    masked = np.flatnonzero(~_IS_BASE[np.frombuffer(text[ends[0] : ends[-1]], np.uint8)])
    read = np.flatnonzero(calls.called)
    contig = calls.contig[read]
    offset = (ends[:-1] - ends[0])[contig]
    begin, end = calls.start[read] + offset, calls.end[read] + offset
    begin[1:] = np.maximum(begin[1:], end[:-1])  # where windows overlap, a base counts once
    bases = end - begin - np.searchsorted(masked, end) + np.searchsorted(masked, begin)
    counted: Int64Array = np.bincount(contig, bases, len(sequences)).astype(np.int64)
    return counted


def contig_rows(
    inventory: pa.RecordBatch, calls: WindowCalls, rule: ContigRule | None
) -> pa.RecordBatch:
    """Rows of EVIDENCE for a batch of the inventory (contig, length, sequence) and its windows."""
    n = inventory.num_rows
    called, virus = calls.called, calls.is_virus
    read = np.bincount(calls.contig[called], minlength=n)
    viral = np.bincount(calls.contig[virus], minlength=n)
    best = np.zeros(n)
    np.maximum.at(best, calls.contig[called], calls.score_virus[called].astype(np.float64))
    scores = calls.score_virus[called].astype(np.float64)
    total = np.bincount(calls.contig[called], weights=scores, minlength=n)
    divisor = np.maximum(read, 1)
    fraction = viral / divisor
    score = fraction if rule is None else rule.probability(calls.features())
    unread = read == 0
    reason = np.full(n, None, object)
    for i in np.flatnonzero(unread).tolist():
        own = slice(calls.first[i], calls.first[i + 1])
        reason[i] = _reason(inventory["sequence"][i].as_py(), calls.start[own], calls.end[own])
    figures = (_digits(x).astype(np.float32) for x in (fraction, best, total / divisor, score))
    columns: list[Any] = [
        inventory["contig"],
        inventory["length"],
        np.diff(calls.first),
        read,
        np.bincount(calls.contig, weights=calls.frames, minlength=n).astype(np.int64),
        _evidence(inventory["sequence"], calls),
        viral,
        *(pa.array(x, mask=unread) for x in figures),
        reason,
    ]
    return pa.record_batch(columns, schema=EVIDENCE)


def viral_stretches(calls: WindowCalls, rule: ContigRule | None, before: int = 0) -> list[Region]:
    """Viral stretches of a batch's contigs, of which `before` came earlier."""
    odds = calls.odds if rule is None else rule.windows(calls.odds, calls.frames > 0)
    odds = np.where(calls.called, odds, np.nan)
    found = []
    # most contigs have no window that speaks for a region at all
    for i in np.unique(calls.contig[odds > 0]).tolist():
        first, last = calls.first[i], calls.first[i + 1]
        for segment in viral_segments(odds[first:last]):
            own = slice(first + segment.first, first + segment.last)
            read = calls.called[own]
            start, end = int(calls.start[own][0]), int(calls.end[own][-1])
            mean = float(calls.score_virus[own][read].mean())
            found.append(Region(before + i, start, end, int(read.sum()), mean))
    return found


class Sample(NamedTuple):
    """The share of viruses that probabilities are for, where it is from, and of how many contigs.

    source: `estimated`, `given`, or `prior` where there were too few; None without a calibration.
    """

    share: float | None
    source: str | None
    contigs: int


def decide(
    rows: pa.Table, regions: list[Region], criteria: Criteria, rule: ContigRule | None
) -> tuple[pa.Table, list[Region], Sample]:
    """The table of `schema.CONTIGS` of all rows of EVIDENCE, and the regions to be reported.

    Contigs called virus are regions as a whole; a stretch of one that is not is a provirus.
    """
    score = rows["score"].to_numpy().astype(np.float64)
    reason = np.array(rows["reason"].to_pylist(), object)
    read = ~np.isnan(score)
    short = rows["length"].to_numpy() < criteria.min_length
    little = rows["evidence_bp"].to_numpy() < criteria.min_evidence
    reason[read & little] = "little_evidence"
    reason[short] = "too_short"
    known = read & ~short & ~little
    probability, fdr = np.full((2, len(score)), np.nan)
    sample = Sample(None, None, int(known.sum()))
    if rule is not None:
        sample = _sample(score[known], criteria.prevalence)
        probability[known] = _digits(corrected(score[known], PRIOR, sample.share or PRIOR))
        fdr[known] = _digits(false_discovery(probability[known]))
    # compared as printed
    virus = known & (score.astype(np.float32) >= np.float32(criteria.min_score))
    if criteria.max_fdr is not None:
        virus &= fdr.astype(np.float32) <= np.float32(criteria.max_fdr)
    call = np.where(virus, "virus", np.where(known, "other", "no_call"))
    kept = [region for region in regions if call[region.contig] == "other"]
    count = virus.astype(np.int32) + np.bincount([r.contig for r in kept], minlength=len(score))
    column: dict[str, Any] = {
        **dict(zip(rows.column_names, rows.columns, strict=True)),
        "probability": pa.array(probability.astype(np.float32), mask=np.isnan(probability)),
        "fdr": pa.array(fdr.astype(np.float32), mask=np.isnan(fdr)),
        "regions": count,
        "call": call,
        "reason": reason,
    }
    columns = [column[name] for name in CONTIGS.names]
    return pa.table(columns, schema=CONTIGS), kept, sample


def _sample(score: Float64Array, given: float | None) -> Sample:
    if given is not None:
        return Sample(given, "given", len(score))
    if len(score) < LEAST_CONTIGS:
        return Sample(PRIOR, "prior", len(score))
    share = float(f"{estimated_share(score, PRIOR):.4g}")
    return Sample(share, "estimated", len(score))
