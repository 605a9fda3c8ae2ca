"""A model beside geNomad's network, Jaeger and DeepMicroClass, on contigs that `train` held out.

    python benchmarks/tools.py --virus virus.fa.xz --other other.fa.xz -o tools \
        --genomad bin/genomad --jaeger bin/jaeger --deepmicroclass bin/DeepMicroClass --hexamers

Each tool is installed in a venv of its own, `pip install genomad`, `"jaeger-bio[cpu]"`,
`deepmicroclass requests`; their weights come with them, and geNomad's network needs no database.
What is not given is left out, but a tool's table of the same contigs that lies in the output
already is taken as it is: for another model, give --model alone. Writes virus.fa, other.fa, each
tool's table, and what `virnucpro evaluate` makes of them.
"""

from __future__ import annotations

import argparse
import csv
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import hexamers
import numpy as np

from virnucpro_core.lab.corpus import Corpus, letters
from virnucpro_core.sequences.fasta import read_fasta

SIZES = (300, 500, 1000, 3000)


def cut(virus: list[Path], other: list[Path], out: Path, number: int, seed: int) -> None:
    """Write `number` contigs of each size, half of them viral, out of the test part."""
    rng = np.random.default_rng(seed)
    with TemporaryDirectory() as folder:
        corpus = Corpus.write(Path(folder) / "corpus", virus, other)
        chances, viral = corpus.chances("test"), corpus.viral[corpus.kind]
        for of, name in ((True, "virus"), (False, "other")):
            with (out / f"{name}.fa").open("w") as handle:
                for size in SIZES:
                    chance = chances * ((viral == of) & (corpus.length >= size))
                    drawn = rng.choice(len(chance), number // 2, p=chance / chance.sum())
                    for n, stretch in enumerate(drawn.tolist()):
                        begin = int(rng.integers(0, int(corpus.length[stretch]) - size + 1))
                        text = letters(corpus.codes(stretch, begin, begin + size)).decode()
                        group, kind = corpus.groups[corpus.group[stretch]], corpus.kind[stretch]
                        handle.write(f">{group}#{size}-{n} {corpus.kinds[kind]}\n{text}\n")


def contigs(out: Path) -> Iterator[tuple[str, str]]:
    """Ids and bases."""
    for name in ("virus", "other"):
        lines = (out / f"{name}.fa").read_text().splitlines()
        for head, text in zip(lines[::2], lines[1::2], strict=True):
            yield head[1:].split()[0], text


def rows_of(folder: Path, pattern: str) -> Iterator[dict[str, str]]:
    """Rows of the one table that a tool wrote."""
    [path] = folder.rglob(pattern)
    with path.open(newline="") as handle:
        yield from csv.DictReader(handle, delimiter="\t")


def genomad(program: str, fasta: Path, folder: Path, _: int) -> Iterator[tuple[str, float]]:
    run(program, "nn-classification", "--quiet", "--threads", "2", fasta, folder)
    for row in rows_of(folder, "*_nn_classification.tsv"):
        yield row["seq_name"], float(row["virus_score"])


def jaeger(program: str, fasta: Path, folder: Path, size: int) -> Iterator[tuple[str, float]]:
    """Fragments of 500 bases, shorter contigs as they are; of its logits, the phages' softmax."""
    step = str(min(size, 500))
    run(program, "predict", "-i", fasta, "-o", folder, "--fsize", step, "--stride", step, "--cpu")
    for row in rows_of(folder, f"{fasta.stem}_jaeger.tsv"):
        logits = [float(row[f"{of}_score"]) for of in ("phage", "bacteria", "eukarya", "archaea")]
        yield row["contig_id"], 1 / sum(math.exp(other - logits[0]) for other in logits)


def deepmicroclass(
    program: str, fasta: Path, folder: Path, size: int
) -> Iterator[tuple[str, float]]:
    """The viral classes' share of all. Under 500 bases it has no score."""
    if size < 500:
        return
    run(program, "predict", "-i", fasta, "-o", folder, "-d", "cpu", "-ct", "2")
    for row in rows_of(folder, "*_hybrid.tsv"):
        of = {kind: float(row[kind]) for kind in DEEPMICROCLASS}
        if total := sum(of.values()):
            yield row["Sequence Name"], (of["EukaryoteVirus"] + of["ProkaryoteVirus"]) / total


DEEPMICROCLASS = ("Eukaryote", "EukaryoteVirus", "Plasmid", "Prokaryote", "ProkaryoteVirus")
TOOLS: dict[str, Callable[[str, Path, Path, int], Iterator[tuple[str, float]]]] = {
    "geNomad": genomad,
    "Jaeger": jaeger,
    "DeepMicroClass": deepmicroclass,
}


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


def score(tool: str, program: str, out: Path, table: Path) -> None:
    """A tool's table of the contigs, sizes apart, under names that no tool changes."""
    known = dict(enumerate(contigs(out)))
    with table.open("w") as handle, TemporaryDirectory() as folder:
        handle.write("contig\tscore\n")
        for size in SIZES:
            fasta = Path(folder) / f"of{size}.fa"
            own = {f"c{n}": pair for n, pair in known.items() if len(pair[1]) == size}
            fasta.write_text("".join(f">{name}\n{text}\n" for name, (_, text) in own.items()))
            began = time.perf_counter()
            for name, value in TOOLS[tool](program, fasta, Path(folder) / f"out{size}", size):
                handle.write(f"{own[name][0]}\t{value:.6g}\n")
            print(f"{tool}, {size} bases: {time.perf_counter() - began:.0f} s", file=sys.stderr)


def score_hexamers(virus: list[Path], other: list[Path], out: Path, table: Path) -> None:
    """The perceptron's table, trained on what `train` would be."""
    with TemporaryDirectory() as folder:
        corpus = Corpus.write(Path(folder) / "corpus", virus, other)
        perceptron = hexamers.trained(corpus)
    contigs = list(read_fasta([out / "virus.fa", out / "other.fa"]))
    scores = hexamers.score(perceptron, contigs)
    lines = [f"{name}\t{value:.6g}\n" for name, value in scores.items()]
    table.write_text("".join(["contig\tscore\n", *lines]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--virus", type=Path, action="append", required=True)
    parser.add_argument("--other", type=Path, action="append", required=True)
    parser.add_argument("--output", "-o", type=Path, required=True)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--number", type=int, default=500, help="contigs of each size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hexamers", action="store_true", help="train hexamers.py's perceptron")
    for tool in TOOLS:
        parser.add_argument(f"--{tool.lower()}", help="the installed program")
    asked = parser.parse_args()
    out: Path = asked.output
    out.mkdir(parents=True, exist_ok=True)
    cut(asked.virus, asked.other, out, asked.number, asked.seed)
    tables = []
    for tool in (*TOOLS, "hexamers"):
        table, given = out / f"{tool.lower()}.tsv", getattr(asked, tool.lower())
        if given and tool in TOOLS:
            score(tool, given, out, table)
        elif given:
            score_hexamers(asked.virus, asked.other, out, table)
        if table.exists():
            tables.append(f"--table={tool}={table}")
    files = ("--virus", out / "virus.fa", "--other", out / "other.fa", "--output", out)
    words = ["evaluate", *files, "--model", asked.model, *tables]
    run(sys.executable, "-m", "virnucpro_core.cli", *words)


if __name__ == "__main__":
    main()
