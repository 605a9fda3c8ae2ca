"""Genetic codes: what codons read as, and which code `auto` chooses for a contig."""

from __future__ import annotations

import logging
import math
import random
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from Bio.Data.CodonTable import unambiguous_dna_by_id
from Bio.Seq import Seq

from virnucpro_core.errors import InputError
from virnucpro_core.parquet import frame_batches, frame_meta
from virnucpro_core.sequences.codes import (
    choose,
    codon_numbers,
    codon_residues,
    evidence,
    genetic_code,
)
from virnucpro_core.sequences.fasta import Contig, read_fasta
from virnucpro_core.sequences.frames import stop_free_frames
from virnucpro_core.sequences.translate import translate


def _genome(code: int, seed: int = 0, genes: int = 12) -> bytes:
    """Genes of 400 codons on both strands, with a stop of that code behind each, and gaps."""
    rng = random.Random(f"{code} {seed}")
    stops = unambiguous_dna_by_id[code].stop_codons
    codons = ["".join(c) for c in product("AACGTT", repeat=3) if "".join(c) not in stops]
    text = ""
    for _ in range(genes):
        gene = "".join(rng.choices(codons, k=400)) + rng.choice(stops)
        text += gene if rng.random() < 0.5 else str(Seq(gene).reverse_complement())
        text += "".join(rng.choices("ACGT", k=rng.randrange(100)))
    return text.encode()


@pytest.mark.filterwarnings("ignore:This table contains")  # codons that are both, residue and stop
@pytest.mark.parametrize("code", sorted(unambiguous_dna_by_id))
def test_codon_residues_of_every_code_are_biopython_s(code: int) -> None:
    for letters in product("ACGTN", repeat=3):
        codon = "".join(letters)
        (number,) = codon_numbers(codon.encode())
        for table, read in zip(
            codon_residues(code), (Seq(codon), Seq(codon).reverse_complement()), strict=True
        ):
            known = "N" not in codon
            assert chr(table[number]) == (str(read.translate(table=code)) if known else "\0")


def test_genetic_code_unknown_is_refused_with_those_there_are() -> None:
    assert [genetic_code(given) for given in (1, "15", "auto")] == ["1", "15", "auto"]
    for given in (0, 7, 34, "", "1.0", "01", "standard"):
        with pytest.raises(InputError, match=r"no such table; give auto or one of 1, 2, .*, 33\.$"):
            genetic_code(given)


def test_choose_genomes_of_three_codes_finds_each() -> None:
    genomes = [Contig(str(n), "", _genome(code, n)) for n, code in enumerate((15, 1, 4, 4, 1, 15))]
    assert choose(genomes) == [15, 1, 4, 4, 1, 15]
    flipped = [Contig("", "", bytes(Seq(c.sequence.lower()).reverse_complement())) for c in genomes]
    assert choose(flipped) == [15, 1, 4, 4, 1, 15]
    one_by_one = [choose([genome])[0] for genome in genomes]
    assert one_by_one == [15, 1, 4, 4, 1, 15]


def _plain_evidence(text: str, code: int) -> float:
    """By the words of the module, codon by codon."""
    stops, runs, ends = unambiguous_dna_by_id[code].stop_codons, [], 0
    for strand in (text, str(Seq(text).reverse_complement())):
        for phase in range(3):
            runs.append(0)
            for at in range(phase, len(strand) - 2, 3):
                codon = strand[at : at + 3]
                ends += codon in stops
                if codon in stops or set(codon) - set("ACGT"):
                    runs.append(0)
                else:
                    runs[-1] += 1
    rate = -math.log1p(-ends / max(2 * (len(text) - 2), 1))
    return sum(max(0, run * rate - math.log(max(ends, 1000))) for run in runs)


def test_evidence_of_any_contigs_is_that_of_a_plain_count() -> None:
    rng = random.Random(1)
    texts = ["", "A", "TA", "TAA", "NNNN", "TAANTAG" * 300]
    for n in range(40):
        code = rng.choice((1, 4, 15, 11))
        genome = _genome(code, n, genes=rng.randrange(1, 4)).decode()
        begin = rng.randrange(400)
        text = genome[begin : begin + rng.randrange(600, 4000)]
        at = rng.randrange(len(text))
        texts.append(text[:at] + "N" * rng.choice((0, 1, 2)) + text[at:])
    texts.append(_genome(15, 7, genes=90).decode())  # has over 1000 runs
    plain = [[_plain_evidence(text, code) for text in texts] for code in (1, 4, 15)]
    assert np.count_nonzero(plain) > 60
    assert np.allclose(evidence([text.encode() for text in texts]), plain, rtol=1e-9)


@pytest.mark.parametrize(
    ("lead", "length", "code"),
    [(10, 1, 1), (10.5, 10_000, 4), (10.5, 10_499, 4), (10.5, 10_500, 1), (20, 19_999, 4)],
)
def test_choose_takes_another_code_by_its_lead_and_the_length(
    lead: float, length: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = np.array([[3.0], [3.0 + lead], [3.0]])
    monkeypatch.setattr("virnucpro_core.sequences.codes.evidence", lambda texts: found)
    assert choose([Contig("c", "", b"A" * length)]) == [code]


def test_choose_without_clear_evidence_stays_at_one() -> None:
    rng = random.Random(0)
    genome = _genome(15)
    shuffled = [bytes(rng.sample(_genome(15, n), len(genome) - 500)) for n in range(20)]
    other = [b"", b"A", b"TAG", b"N" * 9000, b"ACGT" * 2000, genome[:500], *shuffled]
    assert set(choose([Contig("", "", text) for text in other])) == {1}


def test_choose_gap_of_unknown_bases_is_no_evidence() -> None:
    gapped = b"N".join([_genome(1), b"N" * 5000, _genome(1, 1)])
    assert choose([Contig("a", "", gapped)]) == [1]
    gapped = b"N".join([_genome(15), b"N" * 5000, _genome(15, 1)])
    assert choose([Contig("a", "", gapped)]) == [15]


def test_choose_real_contigs_stay_at_one_but_the_phage_of_code_fifteen(shared: Path) -> None:
    contigs = list(read_fasta([shared / "data" / "metagenome_crc.fa.gz"]))
    chosen = {c.id: code for c, code in zip(contigs, choose(contigs), strict=True) if code != 1}
    assert chosen == {"k99_957406": 15}
    assert choose(list(read_fasta([shared / "reference/original/crAssphage.fa.gz"]))) == [1]


def test_stretches_are_the_longest_runs_of_the_code() -> None:
    contig = Contig("a", "", _genome(15, genes=3))
    rows = stop_free_frames([contig], 600, code=15, runs=True).to_pylist()
    stretches = [row for row in rows if row["frame"].islower()]
    assert stretches
    for row in stretches:
        strand = Seq(row["nucleotide"])
        runs = [
            run
            for text in (strand, strand.reverse_complement())
            for f in range(3)
            for run in str(text[f : f + (len(text) - f) // 3 * 3].translate(table=15)).split("*")
        ]
        assert row["protein"] in runs
        assert len(row["protein"]) == max(map(len, runs))


def test_translate_auto_reads_each_contig_with_its_code_and_tells_how_many(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contigs = [Contig(f"c{n}", "", _genome(code, n)) for n, code in enumerate((1, 15, 15, 1, 4))]
    fasta = tmp_path / "in.fa"
    fasta.write_text("".join(f">{c.id}\n{c.sequence.decode()}\n" for c in contigs))
    caplog.set_level(logging.DEBUG, "virnucpro")
    translate([fasta], tmp_path / "f.parquet", 300, code="auto")
    rows = [row for batch in frame_batches(tmp_path / "f.parquet") for row in batch.to_pylist()]
    assert rows == [
        row
        for contig, code in zip(contigs, (1, 15, 15, 1, 4), strict=True)
        for row in stop_free_frames([contig], 300, code=code).to_pylist()
    ]
    meta = frame_meta(tmp_path / "f.parquet")
    assert (meta.genetic_code, meta.read_with) == ("auto", {"1": 2, "15": 2, "4": 1})
    assert "contigs read: 2 with code 1, 2 with code 15, 1 with code 4" in caplog.messages
    assert "c4 is read with code 4" in caplog.messages


def test_translate_settings_of_the_same_frames_have_different_digests(tmp_path: Path) -> None:
    fasta = tmp_path / "in.fa"
    fasta.write_text(">a\n" + "GCA" * 200 + "\n")
    metas = []
    for code in (1, 11, "auto"):
        translate([fasta], tmp_path / "f.parquet", 300, code=code)
        metas.append(frame_meta(tmp_path / "f.parquet"))
    assert len({meta.digest for meta in metas}) == 3
    assert len({meta.rows for meta in metas}) == 1
