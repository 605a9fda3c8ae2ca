"""What a model calls at each length, and the stated against the true false discovery rate.

    python benchmarks/error_rate.py virus.fa.xz other.fa.xz -o docs/benchmarks/error-rate

Headers are `>{group}#{n} {kind}`. Contigs are cut out of the groups that `virnucpro train` holds
out for the test, some of each length, and more of all lengths from 500 to 10,000 bases, out of
whose scores samples with a share of viruses are drawn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from virnucpro_core import predict
from virnucpro_core.lab.corpus import Corpus
from virnucpro_core.lab.curves import plot
from virnucpro_core.lab.heldout import Labelled
from virnucpro_core.models.rule import PRIOR, Float64Array
from virnucpro_core.models.store import resolve_model
from virnucpro_core.results.calls import BoolArray
from virnucpro_core.results.prevalence import corrected, estimated_share, false_discovery

RANDOM = (3, 10, 30, 50, 100, 150, 200, 300, 500, 1000, 3000)
REAL = (100, 150, 200, 300, 500, 1000, 3000)
SHARES = (0.01, 0.05, 0.2, 0.5)
STATED = (0.05, 0.1, 0.2)


class Piece(NamedTuple):
    """A sequence; `length` is 0 in those of many lengths, kind is `random`, `virus` or `other`."""

    kind: str
    length: int
    bases: str


def pieces(corpus: Corpus, part: str, count: int, drawn: int, seed: int) -> Iterator[Piece]:
    """Random letters and pieces of a part, so many of each class and length, and `drawn` more."""
    rng = np.random.default_rng(seed)
    for length in RANDOM:
        for _ in range(count):
            yield Piece("random", length, "".join(rng.choice(list("ACGT"), length)))
    for length in REAL:
        left = {"virus": count, "other": count}
        sample = Labelled.drawn(corpus, part, 4 * count, seed, (length + 1, length + 1))
        for kind, bases in labelled(sample):
            if len(bases) >= length and left[kind]:
                left[kind] -= 1
                yield Piece(kind, length, bases[:length])
    for kind, bases in labelled(Labelled.drawn(corpus, part, drawn, seed)):
        yield Piece(kind, 0, bases)


def labelled(sample: Labelled) -> Iterator[tuple[str, str]]:
    for contig, viral in zip(sample.contigs, sample.truth.tolist(), strict=True):
        yield "virus" if viral else "other", contig.sequence.decode()


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
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--part", default="test")
    parser.add_argument("--count", type=int, default=200, help="of a class and a length")
    parser.add_argument("--drawn", type=int, default=4000, help="of all lengths")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    rule = resolve_model(given.model, given.models_dir).rule
    assert rule is not None, "a model without a rule has no error rate"
    with TemporaryDirectory() as folder:
        corpus = Corpus.write(Path(folder) / "corpus", [given.virus], [given.other])
        made = list(pieces(corpus, given.part, given.count, given.drawn, given.seed))
        fasta = Path(folder) / "pieces.fa"
        fasta.write_text("".join(f">{n}\n{piece.bases}\n" for n, piece in enumerate(made)))
        table = predict(fasta, given.model, models_dir=given.models_dir, min_evidence=0)
    score = np.nan_to_num(table["score"].to_numpy().astype(np.float64))
    kind = np.array([piece.kind for piece in made])
    length = np.array([piece.length for piece in made])
    virus = score >= rule.call_at
    called = {
        name: {
            str(size): round(float(virus[(kind == name) & (length == size)].mean()), 4)
            for size in sorted(set(length[kind == name].tolist()) - {0})
        }
        for name in ("random", "other", "virus")
    }
    real = length == 0
    scores = (score[real], kind[real] == "virus")
    rates = list(stated_and_true(*scores, 1000, 100, np.random.default_rng(given.seed)))
    for name, shares in called.items():
        print(f"{name:<8}", *(f"{size}: {share:.3f}" for size, share in shares.items()))
    for rate in rates:
        print(*rate.values())
    if given.output:
        given.output.mkdir(parents=True, exist_ok=True)
        record = {
            "model": given.model,
            "part": given.part,
            "count": given.count,
            "drawn": given.drawn,
            "called": called,
            "rates": rates,
        }
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
