"""Which genetic code `--genetic-code auto` chooses, and what it wins: windows with a frame.

    python benchmarks/codes.py topaz=phage.fa gut=contigs.fa.gz --json docs/benchmarks/codes.json

Of each file its contigs as they are, cut to 3, 5 and 10 kb, and with their bases shuffled.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from virnucpro_core.sequences.codes import CANDIDATES, choose
from virnucpro_core.sequences.fasta import Contig, read_fasta
from virnucpro_core.sequences.frames import batches, stop_free_frames
from virnucpro_core.sequences.windows import window_starts

SHUFFLED = 50_000
"""Bases of a contig that are shuffled, at most: Python takes a microsecond for each."""


def chosen(contigs: Iterable[Contig]) -> dict[int, int]:
    """The number of contigs by the code that `auto` reads them with."""
    return dict(
        sorted(Counter(code for batch in batches(contigs) for code in choose(batch)).items())
    )


def cut(contigs: Iterable[Contig], size: int) -> Iterator[Contig]:
    """Whole pieces of a size."""
    for contig in contigs:
        for at in range(0, len(contig.sequence) - size + 1, size):
            yield Contig(contig.id, "", contig.sequence[at : at + size])


def shuffled(contigs: Iterable[Contig]) -> Iterator[Contig]:
    """Contigs of the same composition that code for nothing."""
    rng = random.Random(0)
    for contig in contigs:
        bases = list(contig.sequence[:SHUFFLED])
        rng.shuffle(bases)
        yield Contig(contig.id, "", bytes(bases))


def with_frame(contig: Contig, window: int, code: int) -> float:
    """The share of a contig's windows that have a stop-free frame."""
    found: int = pc.count_distinct(stop_free_frames([contig], window, code=code)["window"]).as_py()
    return round(found / len(window_starts(len(contig.sequence), window)), 3)


def measure(contigs: list[Contig]) -> dict[str, Any]:
    """All that is told of one file; windows only of its first contigs that are not read with 1."""
    others = [
        (contig, code)
        for batch in batches(contigs)
        for contig, code in zip(batch, choose(batch), strict=True)
        if code != 1
    ]
    return {
        "bases": sum(len(contig.sequence) for contig in contigs),
        "chosen": {
            "whole": chosen(contigs),
            **{str(size): chosen(cut(contigs, size)) for size in (3000, 5000, 10_000)},
            "shuffled": chosen(shuffled(contigs)),
        },
        "windows_with_a_frame": {
            contig.id: {
                "bases": len(contig.sequence),
                "auto": code,
                **{
                    str(window): {str(c): with_frame(contig, window, c) for c in CANDIDATES}
                    for window in (300, 500)
                },
            }
            for contig, code in others[:5]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", help="NAME=FASTA")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    named = (file.split("=", 1) for file in arguments.files)
    result = {name: measure(list(read_fasta([Path(path)]))) for name, path in named}
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
