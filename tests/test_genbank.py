"""Training on GenBank files: their frames, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqFeature import FeatureLocation, SeqFeature
from Bio.SeqRecord import SeqRecord
from tiny import ENDS, coding

from virnucpro_core.errors import InputError
from virnucpro_core.lab.genbank import is_genbank, translate_genbank
from virnucpro_core.models.store import Model
from virnucpro_core.sequences.fasta import read_fasta
from virnucpro_core.sequences.translate import translate

pytestmark = pytest.mark.usefixtures("one_thread")


def flat_file(path: Path, ends: dict[str, str], kind: str, number: int) -> list[SeqRecord]:
    """A GenBank file of records with a gene on each strand, and what lies between them."""
    rng = np.random.default_rng(len(kind))
    records = []
    for n in range(number):
        between = "".join(rng.choice(list("ACGT"), 90))
        genes = [Seq("ATG" + coding(rng, ends[kind], 150) + "TAA") for _ in range(2)]
        bases = genes[0] + between + genes[1].reverse_complement() + "N" * 40 + between
        record = SeqRecord(bases, id=f"NC_{kind}{n}.1", name=f"NC_{kind}{n}")
        record.annotations = {"molecule_type": "DNA", "organism": f"{kind.title()} phage {n}/a"}
        first = len(genes[0]) + 90
        for start, strand, gene in ((0, 1, genes[0]), (first, -1, genes[1])):
            place = FeatureLocation(start, start + len(gene), strand=strand)
            says = {"translation": [str(gene.translate(to_stop=True))]}
            record.features.append(SeqFeature(place, "CDS", qualifiers=says))
        records.append(record)
    SeqIO.write(records, path, "genbank")
    return records


def test_frames_of_a_genbank_file_are_those_that_match_its_proteins(tmp_path: Path) -> None:
    """Against the original's rule, read naively, on the same sequences as FASTA."""
    records = flat_file(tmp_path / "a.gb", ENDS, "virus", 5)
    assert is_genbank(tmp_path / "a.gb")
    (tmp_path / "a.fa").write_text("".join(f">{r.id}\n{r.seq}\n" for r in records))
    assert not is_genbank(tmp_path / "a.fa")
    translate_genbank([tmp_path / "a.gb"], tmp_path / "gb.parquet", 100)
    translate([tmp_path / "a.fa"], tmp_path / "fa.parquet", 100, tmp_path / "fa")
    chunks = {c.id: c.sequence for c in read_fasta([tmp_path / "fa/chunked100.fa"])}
    proteins = {r.id: [f.qualifiers["translation"][0] for f in r.features] for r in records}
    expected = [
        (f"{row['frame']}{row['window']}", row["nucleotide"], row["protein"])
        for row in pq.read_table(tmp_path / "fa.parquet").to_pylist()
        if b"N" not in chunks[row["frame_id"][:-2]]
        and any(row["protein"] in protein for protein in proteins[row["contig"]])
    ]
    found = pq.read_table(tmp_path / "gb.parquet").to_pylist()
    assert [
        (f"{r['frame']}{r['window']}", r["nucleotide"], r["protein"]) for r in found
    ] == expected
    assert {r["frame"][0] for r in found} == {"F", "R"}
    assert 0 < len(found) < pq.read_metadata(tmp_path / "fa.parquet").num_rows
    assert found[0]["contig"] == "Virus_phage_0_a#NC_virus0.1"


def test_a_head_is_trained_on_genbank_files(
    pair: Model, ask: Callable[..., str], tmp_path: Path
) -> None:
    words: list[object] = ["train", "--encoders", "pair", "--models-dir", pair.folder.parent]
    for kind in ENDS:
        flat_file(tmp_path / f"{kind}.gbff", ENDS, kind, 40)
        words += [f"--{kind}", tmp_path / f"{kind}.gbff"]
    out = pair.folder.parent / "flat"
    ask(*words, "-o", out, "--device", "cpu")
    training = json.loads((out / "model.json").read_text())["training"]
    assert training["test"]["auc"] > 0.8
    assert [one["name"] for one in training["files"]] == ["virus.gbff", "other.gbff"]


@pytest.mark.parametrize("harm", ["cut", "protein", "bare", "twice"])
def test_a_genbank_file_that_is_none_or_damaged_is_refused(harm: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gb"
    records = flat_file(path, ENDS, "virus", 2)
    said = "no GenBank file of nucleotides, or damaged"
    match harm:
        case "cut":
            path.write_text(path.read_text()[:-200])
        case "protein":
            record = SeqRecord(Seq("MKV"), id="P1", annotations={"molecule_type": "protein"})
            SeqIO.write([record], path, "genbank")
        case "twice":
            SeqIO.write([records[0], records[0]], path, "genbank")
            said = "comes twice"
        case "bare":
            record = SeqRecord(Seq(None, 500), id="B1", annotations={"molecule_type": "DNA"})
            SeqIO.write([record], path, "genbank")
            assert translate_genbank([path], tmp_path / "f.parquet", 100) == 0
            return
    with pytest.raises(InputError, match=said):
        translate_genbank([path], tmp_path / "f.parquet", 100)
    assert not (tmp_path / "f.parquet").exists()
