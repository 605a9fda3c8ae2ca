"""What a contig is called by itself, and among others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import virnucpro_core as vnp
from virnucpro_core.sequences.fasta import Contig, read_fasta

DEMO = Path(__file__).parents[1] / "assets/demo"
OF_SAMPLE = {"probability", "fdr"}


def called(contigs: list[Contig], path: Path) -> dict[str, dict[str, Any]]:
    path.write_bytes(b"".join(b">%s\n%s\n" % (one.id.encode(), one.sequence) for one in contigs))
    return {row["contig"]: row for row in vnp.predict(path, "mini", devices="cpu").to_pylist()}


def test_score_of_a_contig_is_the_same_alone_and_in_any_company(tmp_path: Path) -> None:
    contigs = [one for one in read_fasta(sorted(DEMO.glob("*.fa*"))) if len(one.sequence) <= 2000]
    assert len(contigs) > 10
    path = tmp_path / "contigs.fa"
    together, reversed_ = called(contigs, path), called(contigs[::-1], path)
    crowd = called(
        [*contigs, *(one._replace(id=f"{one.id}_{n}") for one in contigs for n in range(15))], path
    )
    assert list(together) == list(reversed_)[::-1]
    for contig in contigs[::5]:
        alone = called([contig], path)[contig.id]
        for company in (together, reversed_, crowd):
            for name, value in company[contig.id].items():
                if name not in OF_SAMPLE:
                    wanted = (
                        value
                        if value is None or isinstance(value, str)
                        else pytest.approx(value, rel=1e-3)
                    )
                    assert alone[name] == wanted, name
    moved = [crowd[one.id]["probability"] != together[one.id]["probability"] for one in contigs]
    assert any(moved)  # what depends on the sample does
