"""What a model calls of random sequences, of the demo and of a sample, beside its test part.

    python benchmarks/mini.py metagenome.fa.gz -o docs/benchmarks/mini.json \
        --notes virnucpro_core/mini/notes.md

As `virnucpro predict` calls by default. With --notes, the sentences of it are put between this
file's name and `end`, two comments in the notes of the model's card.
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
from virnucpro_core.sequences.fasta import Contig, read_fasta

DEMO = Path(__file__).parents[1] / "assets" / "demo"
LENGTHS = (10, 50, 100, 200, 500, 3000)
EACH = 1000
BEGIN, END = "<!-- benchmarks/mini.py -->\n", "<!-- end -->"


def random_contigs(seed: int) -> Iterator[Contig]:
    rng = np.random.default_rng(seed)
    for length in LENGTHS:
        for n in range(EACH):
            yield Contig(f"{length}-{n}", "", bytes(rng.choice(list(b"ACGT"), length).astype("u1")))


def called(contigs: Iterator[Contig], model: str, models_dir: Path | None) -> list[dict[str, Any]]:
    """Rows of the table of contigs."""
    with TemporaryDirectory() as folder:
        fasta = Path(folder) / "contigs.fa"
        fasta.write_bytes(b"".join(b">%s\n%s\n" % (c.id.encode(), c.sequence) for c in contigs))
        rows: list[dict[str, Any]] = predict(fasta, model, models_dir=models_dir).to_pylist()
        return rows


def counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {of: sum(r["call"] == of for r in rows) for of in ("virus", "other", "no_call")}


def sentences(record: dict[str, Any]) -> str:
    """The record in words, as a list in Markdown."""

    def listed(kind: str, call: str) -> str:
        rows = [row for row in record["demo"][kind] if row["call"] == call]
        names = ", ".join(f"{row['contig']} ({row['score']:.2f})" for row in rows)
        return f"{len(rows)} of {len(record['demo'][kind])}{f': {names}' if names else ''}"

    random, sample = record["random"], record["sample"]
    lengths = ", ".join(f"{int(length):,}" for length in random)
    virus = ", ".join(str(random[length]["virus"]) for length in random)
    return (
        f"- Random sequences, {EACH} each of {lengths} bases: {virus} are called virus.\n"
        f"- A gut metagenome, {sum(sample.values()):,} contigs: {sample['virus']:,} are called "
        f"virus, {sample['no_call']:,} get no call.\n"
        f"- The demo's phages that are called other (with their scores): "
        f"{listed('phages', 'other')}.\n"
        f"- Its others that are called virus: {listed('others', 'virus')}.\n"
    )


def noted(notes: str, record: dict[str, Any]) -> str:
    """The notes with the sentences in their place."""
    before, _, rest = notes.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"the notes have no place for it, {BEGIN!r} and {END!r}"
    return f"{before}{BEGIN}{sentences(record)}{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sample", type=Path, help="FASTA of a gut metagenome")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--output", "-o", type=Path, required=True)
    parser.add_argument("--notes", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    where = (given.model, given.models_dir)
    random = called(random_contigs(given.seed), *where)
    record = {
        "model": given.model,
        "random": {
            str(length): counts([row for row in random if row["length"] == length])
            for length in LENGTHS
        },
        "sample": counts(called(read_fasta([given.sample]), *where)),
        "demo": {
            kind: [
                {"contig": row["contig"], "call": row["call"], "score": round(row["score"], 3)}
                for row in called(read_fasta([DEMO / f"{kind}.fasta"]), *where)
            ]
            for kind in ("phages", "others")
        },
    }
    given.output.write_text(json.dumps(record, indent=2) + "\n")
    if given.notes:
        given.notes.write_text(noted(given.notes.read_text(), record))
    print(sentences(record), end="")


if __name__ == "__main__":
    main()
