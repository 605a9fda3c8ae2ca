"""Where two sets of calls agree, which contigs flipped, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from virnucpro_core.errors import InputError
from virnucpro_core.lab.verdicts import PROVIRUS, Verdicts
from virnucpro_core.results.calls import CALLS, BoolArray

NEAR = 0.1
"""Scores that differ by less flipped for want of a wider margin, not for another judgement."""

LENGTHS = (0, 500, 1000, 3000, 10_000)
"""Bases from which on a bin of lengths begins."""

UNLISTED = "not_listed"

FLIP = ("call", "score", "evidence", "reason")
"""What a flipped contig's row tells of either side."""


class Comparison(NamedTuple):
    """Two sets of calls over the same contigs, in the same order.

    alone: how many contigs only one has, by side, where the other has all of its input.
    """

    a: Verdicts
    b: Verdicts
    alone: dict[str, int]

    @property
    def viral(self) -> tuple[BoolArray, BoolArray]:
        a, b = (
            pc.equal(side.table["call"], "virus").to_numpy(zero_copy_only=False)
            for side in (self.a, self.b)
        )
        return a, b


def compare(a: Verdicts, b: Verdicts) -> Comparison:
    """Bring two sets of calls to the same contigs, in the order of A.

    What a table of viruses alone does not list is `other` in it. Raises InputError where both have
    contigs and none in common.
    """
    mine, yours = a.table["contig"], b.table["contig"]
    shared = pc.sum(pc.is_in(mine, value_set=yours)).as_py() or 0
    if not shared and len(mine) and len(yours):
        raise InputError(
            f"{a.path} and {b.path} have no contig in common; compare calls of the same FASTA."
        )
    names = mine
    if a.complete and b.complete:
        names = mine.filter(pc.is_in(mine, value_set=yours))
    elif b.complete:
        names = yours
    elif not a.complete:
        foreign = pc.invert(pc.is_in(yours, value_set=mine))
        names = pa.concat_arrays([mine.combine_chunks(), yours.filter(foreign).combine_chunks()])
    alone = {"a": len(mine) - shared} if b.complete else {}
    if a.complete:
        alone["b"] = len(yours) - shared
    return Comparison(_at(a, names), _at(b, names), alone)


def _at(side: Verdicts, names: pa.Array) -> Verdicts:
    """The rows of these contigs; one that is not there has the call other."""
    rows = pc.index_in(names, value_set=side.table["contig"])
    table = side.table.take(rows)
    table = table.set_column(0, "contig", names)
    table = table.set_column(2, "call", pc.fill_null(table["call"], "other"))
    listed = pc.if_else(pc.is_null(rows), UNLISTED, table["reason"])
    return side._replace(table=table.set_column(5, "reason", listed))


def record(found: Comparison) -> dict[str, Any]:
    """All counts of a comparison, as JSON has them."""
    va, vb = found.viral
    calls = [side.table["call"].to_numpy(zero_copy_only=False) for side in (found.a, found.b)]
    pairs = Counter(zip(*calls, strict=True))
    return {
        **{name: _about(side) for name, side in (("a", found.a), ("b", found.b))},
        "contigs": len(va),
        "alone": found.alone,
        **_agreement(va, vb),
        "calls": {one: {other: pairs[one, other] for other in CALLS} for one in CALLS},
        "by_length": list(_by_length(found)),
        "flipped": int((va != vb).sum()),
        "why": dict(Counter(flips(found)["why"].to_pylist()).most_common()),
    }


def _about(side: Verdicts) -> dict[str, Any]:
    viral = side.table.filter(pc.equal(side.table["call"], "virus"))
    return {
        "path": str(side.path),
        "tool": side.tool,
        "score": side.score,
        "lists": "all contigs" if side.complete else "viruses",
        "lowest_score_of_a_virus": pc.min(viral["score"]).as_py(),
    }


def _agreement(a: BoolArray, b: BoolArray) -> dict[str, float | None]:
    """Share of contigs that are a virus in both or neither, and Cohen's kappa of that."""
    if not len(a):
        return {"agreement": None, "kappa": None}
    agreed = float((a == b).mean())
    chance = float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
    return {"agreement": agreed, "kappa": (agreed - chance) / (1 - chance) if chance < 1 else None}


def _by_length(found: Comparison) -> Iterator[dict[str, Any]]:
    va, vb = found.viral
    known = pc.coalesce(found.a.table["length"], found.b.table["length"])
    lengths = pc.fill_null(known, -1).to_numpy(zero_copy_only=False)
    for low, high in zip(LENGTHS, (*LENGTHS[1:], None), strict=True):
        mine = (lengths >= low) & (lengths < (high or np.inf))
        if mine.any():
            counts = {"contigs": mine, "virus_a": va & mine, "virus_b": vb & mine}
            counts["virus_both"] = va & vb & mine
            yield {
                "from": low,
                "below": high,
                **{name: int(chosen.sum()) for name, chosen in counts.items()},
                **_agreement(va[mine], vb[mine]),
            }


def flips(found: Comparison) -> pa.Table:
    """The contigs that one side alone calls a virus, largest difference of the scores first.

    What is not listed has a score of 0; without a score there is no difference, and those are last.
    """
    va, vb = found.viral
    chosen = pa.array(va != vb)
    a, b = (side.table.filter(chosen).combine_chunks() for side in (found.a, found.b))
    scores = [
        pc.if_else(pc.fill_null(pc.equal(side["reason"], UNLISTED), False), 0.0, side["score"])
        for side in (a, b)
    ]
    columns = {
        "contig": a["contig"],
        "length": pc.coalesce(a["length"], b["length"]),
        **{f"{name}_{side}": t[name] for name in FLIP for side, t in (("a", a), ("b", b))},
        "difference": pc.abs(pc.subtract(*scores)),
    }
    table = pa.table(columns)
    evidence = found.a.evidence if found.a.evidence == found.b.evidence else None
    same_score = found.a.score == found.b.score
    why = [_why(row, same_score, evidence) for row in table.to_pylist()]
    table = table.append_column("why", pa.array(why, pa.string()))
    order = [("difference", "descending"), ("length", "descending"), ("contig", "ascending")]
    return table.sort_by(order)


def _why(row: dict[str, Any], same_score: bool, evidence: str | None) -> str:
    """Why one side calls a contig a virus and the other does not, by the first that holds."""
    side = "b" if row["call_a"] == "virus" else "a"  # that which does not
    name, reason = side.upper(), row[f"reason_{side}"]
    if row[f"call_{side}"] == "no_call":
        return f"no call in {name}: {reason}"
    if reason == PROVIRUS:
        return f"a provirus in {name}"
    if evidence and row["evidence_a"] != row["evidence_b"]:
        return f"other {evidence.replace('_', ' ')}"
    if same_score and row["difference"] == 0:
        return "the same score, another threshold"
    if same_score and row["difference"] is not None and row["difference"] < NEAR:
        return f"scores within {NEAR} of each other"
    if row["evidence_a"] == 1 or row["evidence_b"] == 1:
        return "rests on a single window or frame"
    return f"not listed in {name}" if reason == UNLISTED else "another score"


def write_flips(table: pa.Table, path: Path) -> None:
    """Write flipped contigs as TSV; a cell is empty where there is nothing to say."""
    with path.open("w", encoding="utf-8", newline="\n") as handle:
        handle.write("\t".join(table.schema.names) + "\n")
        for row in table.to_pylist():
            cells = ("" if value is None else str(value) for value in row.values())
            handle.write("\t".join(cells) + "\n")


def lines(about: dict[str, Any], flipped: pa.Table, show: int) -> Iterator[str]:
    """A comparison as a person reads it, with the first flipped contigs."""
    for side in "ab":
        one = about[side]
        lowest = one["lowest_score_of_a_virus"]
        threshold = "no virus" if lowest is None else f"virus from {one['score']} {lowest:.3g} on"
        yield f"{side.upper()}: {one['path']} ({one['tool']}; lists {one['lists']}; {threshold})"
    alone = (f"; {count:,} in {side.upper()} alone" for side, count in about["alone"].items())
    yield f"{about['contigs']:,} contigs compared{''.join(alone)}"
    yield f"agreement on virus or not {_share(about)}"
    yield ""
    yield "".join(f"{text:>12}" for text in ("A \\ B", *CALLS))
    for call in CALLS:
        counts = (f"{about['calls'][call][other]:,}" for other in CALLS)
        yield "".join(f"{text:>12}" for text in (call, *counts))
    yield ""
    yield f"{'length':>16}" + "".join(
        f"{text:>9}" for text in ("contigs", "virus A", "virus B", "both")
    )
    for part in about["by_length"]:
        span = f"{part['from']:,}" + (f" to {part['below']:,}" if part["below"] else " and more")
        names = ("contigs", "virus_a", "virus_b", "virus_both")
        yield f"{span:>16}" + "".join(f"{part[name]:>9,}" for name in names) + f"  {_share(part)}"
    yield ""
    yield f"{about['flipped']:,} contigs flipped"
    yield from (f"{count:>9,}  {why}" for why, count in about["why"].items())
    if show and flipped.num_rows:
        yield ""
        yield f"{'contig':<24}{'length':>9}  {'A':<18}{'B':<18}why"
        for row in flipped.slice(0, show).to_pylist():
            length = "" if row["length"] is None else f"{row['length']:,}"
            sides = (_side(row, side) for side in "ab")
            yield f"{row['contig']:<24}{length:>9}  {''.join(sides)}{row['why']}"


def _share(part: dict[str, Any]) -> str:
    if part["agreement"] is None:
        return "–"
    kappa = "–" if part["kappa"] is None else f"{part['kappa']:.2f}"
    return f"{part['agreement']:.1%}, kappa {kappa}"


def _side(row: dict[str, Any], side: str) -> str:
    score = row[f"score_{side}"]
    text = row[f"call_{side}"] + ("" if score is None else f" {score:.3f}")
    evidence = row[f"evidence_{side}"]
    return f"{text + ('' if evidence is None else f' ({evidence})'):<18}"
