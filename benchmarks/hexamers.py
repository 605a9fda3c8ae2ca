"""The least that a model has to beat: a two-layer perceptron on the hexamers of a contig.

    python benchmarks/hexamers.py --virus virus.fa.xz --other other.fa.xz -o hexamers.json

Trained on contigs drawn out of the training part that `virnucpro train` makes of the same files,
stopped and calibrated by the validation part, measured once on the contigs of the test part on
which `train` measures its model, as `virnucpro evaluate` measures other tools.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from virnucpro_core.lab.corpus import Corpus
from virnucpro_core.lab.embedded import Embedded
from virnucpro_core.lab.evaluate import rows, shown, table_level
from virnucpro_core.lab.head import HeadRecipe, fit_head, odds_of
from virnucpro_core.lab.heldout import Labelled
from virnucpro_core.lab.othertool import Table
from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.results.calls import BoolArray, Float32Array
from virnucpro_core.sequences.fasta import Contig
from virnucpro_core.sequences.windows import Int64Array

K = 6
RECIPE = HeadRecipe(hidden=256, epochs=40)
DRAWN = {"training": 60_000, "validation": 4000}

_CODE = np.full(256, 4, np.int64)
_CODE[list(b"ACGTacgt")] = [*range(4), *range(4)]


def _canonical() -> Int64Array:
    """Of each hexamer, a number that it shares with its reverse complement alone."""
    digits = np.arange(4**K)[:, None] >> 2 * np.arange(K) & 3
    other = (3 - digits) @ (4 ** np.arange(K)[::-1])
    both = np.minimum(np.arange(4**K), other)
    numbers: Int64Array = np.unique(both, return_inverse=True)[1].astype(np.int64)
    return numbers


CANONICAL = _canonical()
DIM = int(CANONICAL.max()) + 1


def hexamers(contigs: Iterable[Contig]) -> Float32Array:
    """Roots of the counts of a contig's hexamers, both strands' alike, the counts' mean made 1."""
    table = []
    for contig in contigs:
        codes = _CODE[np.frombuffer(contig.sequence, np.uint8)]
        parts = [codes[at : len(codes) - K + 1 + at] for at in range(K)]
        known = np.all([part < 4 for part in parts], axis=0)
        words = sum(part << 2 * at for at, part in enumerate(parts))
        counts = np.bincount(CANONICAL[np.asarray(words)[known]], minlength=DIM)
        table.append(np.sqrt(counts * (DIM / max(1, counts.sum()))).astype(np.float32))
    return np.stack(table)


@dataclass(frozen=True)
class Counted(Embedded):
    """Hexamers in memory, as what a classifier is trained on."""

    values: Float32Array

    @classmethod
    def made(cls, contigs: Iterable[Contig], viral: BoolArray) -> Counted:
        return cls((), (), DIM, viral, hexamers(contigs))

    def rows(self, index: Int64Array) -> Float32Array:
        values: Float32Array = self.values[index]
        return values


def trained(corpus: Corpus, seed: int = 0) -> MLPClassifier:
    """The perceptron, calibrated for samples half of which are viral."""
    samples = [Labelled.drawn(corpus, part, number, seed) for part, number in DRAWN.items()]
    viral = np.concatenate([sample.truth for sample in samples])
    data = Counted.made((contig for sample in samples for contig in sample.contigs), viral)
    edges = np.cumsum([0, *(len(sample.contigs) for sample in samples)])
    parts = {name: np.arange(*edges[n : n + 2]) for n, name in enumerate(DRAWN)}
    return fit_head(data, parts, RECIPE, seed, "cpu")[0]


def score(perceptron: MLPClassifier, contigs: Sequence[Contig]) -> dict[str, float]:
    """Probabilities by contig."""
    data = Counted.made(contigs, np.zeros(len(contigs), np.bool_))
    odds = odds_of(perceptron, data, np.arange(len(contigs)))
    chances = 1 / (1 + np.exp(-odds))
    return {contig.id: float(p) for contig, p in zip(contigs, chances, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("--virus", "--other"):
        parser.add_argument(name, type=Path, action="append", required=True)
    for name in ("--more-virus", "--more-other"):
        parser.add_argument(name, type=Path, action="append", default=[])
    parser.add_argument("--output", "-o", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        files = (given.virus, given.other, given.more_virus, given.more_other)
        corpus = Corpus.write(Path(folder) / "corpus", *files)
        perceptron = trained(corpus, given.seed)
        took = time.perf_counter() - began
        test = Labelled.drawn(corpus, "test", 2000)
    table = Table("hexamers", score(perceptron, test.contigs))
    found = rows(test, [table_level(test, table)], (500, 1000, 3000))
    for line in shown(found):
        print(line)
    about = {
        "files": [[path.name for path in paths] for paths in files],
        "seed": given.seed,
        "contigs": DRAWN,
        "hidden": RECIPE.hidden,
        "seconds": round(took),
        "rows": found,
    }
    given.output.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
