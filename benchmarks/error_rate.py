"""What a model calls at each length, and the stated against the true false discovery rate.

    python benchmarks/error_rate.py virus.fa.xz other.fa.xz -o docs/benchmarks/error-rate

Headers are `>{group}#{n} {kind}`. Pieces are cut out of the groups that `virnucpro train` holds out
for validation; samples with a share of viruses are drawn out of those of 500 bases or more.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from virnucpro_core import predict
from virnucpro_core.lab.corpus import part_of
from virnucpro_core.lab.curves import plot
from virnucpro_core.models.rule import PRIOR, Float64Array
from virnucpro_core.models.store import resolve_model
from virnucpro_core.results.calls import BoolArray
from virnucpro_core.results.prevalence import corrected, estimated_share, false_discovery
from virnucpro_core.sequences.fasta import read_fasta

RANDOM = (3, 10, 30, 50, 100, 150, 200, 300, 500, 1000, 3000)
REAL = (100, 150, 200, 300, 500, 1000, 3000)
SHARES = (0.01, 0.05, 0.2, 0.5)
STATED = (0.05, 0.1, 0.2)


def pieces(virus: Path, other: Path, count: int, seed: int) -> Iterator[tuple[str, int, bytes]]:
    """Class (`random`, `virus`, `other`), length and bases."""
    rng = np.random.default_rng(seed)
    for length in RANDOM:
        for _ in range(count):
            yield "random", length, bytes(rng.choice(list(b"ACGT"), length).astype(np.uint8))
    for name, path in (("other", other), ("virus", virus)):
        pool = [
            contig.sequence
            for contig in read_fasta([path])
            if part_of(contig.id) == "validation" and len(contig.sequence) >= max(REAL)
        ]
        weight = np.sqrt([len(bases) for bases in pool])
        for length in REAL:
            for at in rng.choice(len(pool), count, p=weight / weight.sum()).tolist():
                begin = int(rng.integers(len(pool[at]) - length + 1))
                yield name, length, pool[at][begin : begin + length]


def stated_and_true(
    score: Float64Array, viral: BoolArray, size: int, draws: int, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    for share in SHARES:
        for own in (True, False):
            called = np.zeros((draws, len(STATED), 2))
            estimates = []
            for draw in range(draws):
                k = int(rng.binomial(size, share))
                both = rng.choice(score[viral], k), rng.choice(score[~viral], size - k)
                drawn, false = np.concatenate(both), np.arange(size) >= k
                used = estimated_share(drawn, PRIOR) if own else PRIOR
                estimates.append(used)
                rate = false_discovery(corrected(drawn, PRIOR, used))
                called[draw] = [[(rate <= s).sum(), false[rate <= s].sum()] for s in STATED]
            number, wrong = called.sum(0).T
            yield {
                "viruses": share,
                "share": "estimated" if own else "the model's",
                "mean_share": round(float(np.mean(estimates)), 4),
                "stated": STATED,
                "true": np.round(wrong / np.maximum(number, 1), 3).tolist(),
                "called_a_sample": np.round(number / draws, 1).tolist(),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("virus", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    rule = resolve_model(given.model).rule
    assert rule is not None, "a model without a rule has no error rate"
    made = list(pieces(given.virus, given.other, given.count, given.seed))
    with TemporaryDirectory() as folder:
        fasta = Path(folder) / "pieces.fa"
        fasta.write_bytes(b"".join(b">%d\n%s\n" % (n, s) for n, (_, _, s) in enumerate(made)))
        table = predict(fasta, given.model, min_evidence=0)
    score = np.nan_to_num(table["score"].to_numpy().astype(np.float64))
    kind = np.array([name for name, _, _ in made])
    length = np.array([size for _, size, _ in made])
    virus = score >= rule.call_at
    called = {
        name: {
            str(size): round(float(virus[(kind == name) & (length == size)].mean()), 4)
            for size in sorted(set(length[kind == name].tolist()))
        }
        for name in ("random", "other", "virus")
    }
    real = (kind != "random") & (length >= 500)
    drawn = (score[real], kind[real] == "virus")
    rates = list(stated_and_true(*drawn, 1000, 40, np.random.default_rng(given.seed)))
    for name, shares in called.items():
        print(f"{name:<8}", *(f"{size}: {share:.3f}" for size, share in shares.items()))
    for rate in rates:
        print(*rate.values())
    if given.output:
        given.output.mkdir(parents=True, exist_ok=True)
        record = {"model": given.model, "count": given.count, "called": called, "rates": rates}
        (given.output / "error_rate.json").write_text(json.dumps(record, indent=2) + "\n")
        lines = {
            f"{rate['viruses']:.0%} viruses, share {rate['share']}": np.column_stack(
                [rate["stated"], rate["true"]]
            )
            for rate in rates
        }
        axes = ("stated false discovery rate", "true share of false calls")
        page = plot("False discovery rate, stated and true", axes, lines, (0, 1))
        (given.output / "error_rate.svg").write_text(page)


if __name__ == "__main__":
    main()
