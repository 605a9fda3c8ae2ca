"""Plant viral pieces in bacterial contigs, call them, and compare rules for where they lie.

    python benchmarks/proviruses.py virus.fa.xz other.fa.xz --model mini -o proviruses.json

Headers are `>{group}#{n} {kind}`. Of the groups that `virnucpro train` holds out for validation,
neighbouring pieces of a prokaryote make a contig; every second one gets a piece of a phage.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.csv as pacsv

from virnucpro_core import predict
from virnucpro_core.lab.corpus import group_of, part_of
from virnucpro_core.models.rule import Float64Array
from virnucpro_core.models.store import resolve_model
from virnucpro_core.results.regions import maximal_segments, viral_segments
from virnucpro_core.sequences.fasta import read_fasta

PIECES = 6
"""Of a prokaryote's genome, 10 kb each, in one contig."""

Rule = Callable[[Float64Array], list[tuple[int, int]]]
"""Log-odds of windows (N), NaN without a score, to runs of windows [first, last)."""


def contigs(
    virus: Path, other: Path, part: str, count: int, seed: int
) -> Iterator[tuple[str, bytes, tuple[int, int] | None]]:
    """Name, bases and where a phage's piece lies: 0-based, half-open, None in every second one."""
    rng = np.random.default_rng(seed)
    phages = [c for c in read_fasta([virus]) if "phage" in c.description and part_of(c.id) == part]
    genomes = defaultdict(list)
    for contig in read_fasta([other]):
        if contig.description == "prokaryote" and part_of(contig.id) == part:
            genomes[group_of(contig.id)].append(contig.sequence)
    hosts = [
        b"".join(pieces[at : at + PIECES])
        for pieces in genomes.values()
        for at in range(0, len(pieces) - PIECES + 1, PIECES)
    ]
    for n in range(count):
        host = hosts[int(rng.integers(len(hosts)))]
        if n % 2:
            yield f"plain{n}", host, None
            continue
        length = int(np.exp(rng.uniform(np.log(5_000), np.log(40_000))))
        fitting = [phage for phage in phages if len(phage.sequence) >= length]
        phage = fitting[int(rng.integers(len(fitting)))].sequence
        begin = int(rng.integers(len(phage) - length + 1))
        at = int(rng.integers(5_000, len(host) - 5_000))
        whole = host[:at] + phage[begin : begin + length] + host[at:]
        yield f"planted{n}", whole, (at, at + length)


def segments(shift: float, clip: float, least: float, windows: int) -> Rule:
    def find(odds: Float64Array) -> list[tuple[int, int]]:
        scores = np.clip(np.nan_to_num(odds - shift), -clip, clip)
        found = maximal_segments(scores.tolist())
        return [
            (s.first, s.last) for s in found if s.score >= least and s.last - s.first >= windows
        ]

    return find


def markov(shift: float, clip: float, switch: float, windows: int) -> Rule:
    """The likeliest path through two states (Viterbi); switch: log-odds against a change."""

    def find(odds: Float64Array) -> list[tuple[int, int]]:
        scores = np.clip(np.nan_to_num(odds - shift), -clip, clip)
        best, back = (0.0, -switch), []
        for score in scores.tolist():
            stay = best[0], best[1]
            came = stay[1] - switch > stay[0], stay[0] - switch > stay[1]
            back.append(came)
            best = max(stay[0], stay[1] - switch), max(stay[1], stay[0] - switch) + score
        state, path = int(best[1] > best[0]), []
        for came in reversed(back):
            path.append(state)
            state = 1 - state if came[state] else state
        edges = np.flatnonzero(np.diff([0, *reversed(path), 0])).reshape(-1, 2).tolist()
        return [(a, b) for a, b in edges if b - a >= windows]

    return find


def judged(
    rule: Rule, odds: dict[str, Float64Array], spans: dict[str, Any], truth: dict[str, Any]
) -> dict[str, Any]:
    found, regions, errors, none = 0, 0, [], 0
    planted = [name for name, place in truth.items() if place]
    for name, place in truth.items():
        starts, ends = spans[name]
        hits = [(int(starts[a]), int(ends[b - 1])) for a, b in rule(odds[name])]
        if place is None:
            none += len(hits)
            continue
        regions += len(hits)
        true = [h for h in hits if min(h[1], place[1]) - max(h[0], place[0]) > 0]
        covered = sum(min(h[1], place[1]) - max(h[0], place[0]) for h in true)
        if true and covered >= 0.5 * (place[1] - place[0]):
            found += 1
            errors += [abs(true[0][0] - place[0]), abs(true[-1][1] - place[1])]
    return {
        "planted": len(planted),
        "found": found,
        "regions_a_planted_contig": round(regions / len(planted), 2),
        "median_error_of_boundaries": float(np.median(errors)) if errors else None,
        "regions_where_none_was_planted": none,
        "contigs_without": len(truth) - len(planted),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("virus", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--part", default="validation")
    parser.add_argument("--count", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--windows", type=Path, help="a windows.tsv of an earlier run of the same")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    made = list(contigs(given.virus, given.other, given.part, given.count, given.seed))
    with TemporaryDirectory() as folder:
        table = given.windows
        if table is None or not table.exists():
            fasta = Path(folder) / "planted.fa"
            fasta.write_bytes(b"".join(b">%s\n%s\n" % (n.encode(), s) for n, s, _ in made))
            predict(fasta, given.model, output=Path(folder) / "out")
            rows = (Path(folder) / "out" / "windows.tsv").read_bytes()
            if table is not None:
                table.write_bytes(rows)
            table = Path(folder) / "out" / "windows.tsv" if table is None else table
        read = pacsv.read_csv(table, parse_options=pacsv.ParseOptions(delimiter="\t"))
    names = np.array(read["contig"].to_pylist())
    virus, other = (
        np.clip(read[f"score_{c}"].to_numpy().astype(float), 1e-9, 1 - 1e-9)
        for c in ("virus", "other")
    )
    odds = (np.log(virus / (1 - virus)) - np.log(other / (1 - other))) / 2
    model = resolve_model(given.model)
    if model.rule is not None:
        odds = model.rule.windows(odds, read["frames"].to_numpy() > 0)
    own = {name: names == name for name, _, _ in made}
    by_contig = {name: odds[at] for name, at in own.items()}
    spans = {
        name: (read["start"].to_numpy()[at], read["end"].to_numpy()[at]) for name, at in own.items()
    }
    truth = {name: place for name, _, place in made}
    rules: dict[str, Rule] = {
        "as called": lambda odds: [(s.first, s.last) for s in viral_segments(odds)],
        "three viral windows in a row": lambda odds: [
            (s.first, s.last)
            for s in maximal_segments(np.where(odds >= 0, 1.0, -1e3).tolist())
            if s.last - s.first >= 3
        ],
    }
    for shift, clip in ((0.0, 2.0), (0.3, 1.5), (0.3, 3.0), (1.0, 2.0)):
        for least in (6.0, 10.0, 12.0):
            name = f"segments: shift {shift}, clip {clip}, least {least}"
            rules[name] = segments(shift, clip, least, 4)
        for switch in (4.0, 6.0, 8.0):
            name = f"two states: shift {shift}, clip {clip}, switch {switch}"
            rules[name] = markov(shift, clip, switch, 4)
    record = {name: judged(rule, by_contig, spans, truth) for name, rule in rules.items()}
    for name, figures in record.items():
        print(f"{name:<45}", *(f"{value}" for value in figures.values()))
    if given.output:
        given.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
