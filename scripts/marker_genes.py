"""Genes to train `mini` on besides whole genomes, out of the markers.fasta of MetaPhlAn 2.

usage: marker_genes.py markers.fasta kept_apart.txt FOLDER

Writes FOLDER/virus_genes.fa and FOLDER/other_genes.fa: all genes of viruses but those whose GeneID
is listed in kept_apart.txt, and a sample of those of prokaryotes and of eukaryotic microbes.
"""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

NEIGHBOURS = 20
"""GeneIDs no further apart are of one genome."""

SAMPLED = {"prokaryote_gene": (400, 16), "eukaryote_gene": (300, 1)}
"""Shortest gene in bases, and one gene in how many is taken, by a checksum of its header."""


def records(path: Path) -> Iterator[tuple[str, str]]:
    """Header and bases of each record."""
    header = ""
    lines: list[str] = []
    with path.open() as handle:
        for line in handle:
            if line.startswith(">"):
                if header:
                    yield header, "".join(lines)
                header, lines = line[1:].strip(), []
            else:
                lines.append(line.strip())
    yield header, "".join(lines)


def main(markers: Path, kept_apart: Path, folder: Path) -> None:
    """Write both files."""
    apart = {int(word) for word in kept_apart.read_text().split()}
    viral: dict[int, str] = {}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "other_genes.fa").open("w") as out:
        for n, (header, bases) in enumerate(records(markers)):
            if found := re.match(r"GeneID:(\d+)", header):
                viral[int(found[1])] = bases
                continue
            accession = re.search(r"[A-Z]{1,6}_?[A-Z]{0,6}\d{5,}", header)
            kind = "eukaryote_gene" if re.search(r"[XN]M_\d", header) else "prokaryote_gene"
            shortest, nth = SAMPLED[kind]
            if accession and len(bases) >= shortest and zlib.crc32(header.encode()) % nth == 0:
                out.write(f">{accession[0]}#{n} {kind}\n{bases}\n")
    with (folder / "virus_genes.fa").open("w") as out:
        first = last = -NEIGHBOURS - 1
        for gene in sorted(viral):
            first, last = (first if gene - last <= NEIGHBOURS else gene), gene
            if gene not in apart:
                out.write(f">GeneID_{first}#{gene} virus_gene\n{viral[gene]}\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
