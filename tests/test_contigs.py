"""Evidence, order, error rates and regions of contigs."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sample import OPEN, STOPS, Sample, contents

from virnucpro_core.errors import InputError
from virnucpro_core.models.rule import FEATURES, PRIOR, ContigRule
from virnucpro_core.results.again import call_again
from virnucpro_core.results.calls import WindowCalls
from virnucpro_core.results.contigs import EVIDENCE, contig_rows, decide, viral_stretches
from virnucpro_core.results.criteria import Criteria
from virnucpro_core.results.report import write_report

RULE = ContigRule(tuple(float(name == "frames") for name in FEATURES), 0.8)
"""The mean log-odds of the windows with frames."""
EVERY = Criteria(None, 0.5, None, 0, 0, None)


def viral_if(frame_id: str) -> tuple[float, float]:
    """Windows 11 to 20 of contigs named p, and all of those named v, are viral."""
    contig, _, number = frame_id.rpartition("_chunk_")
    viral = contig[0] == "v" or (contig[0] == "p" and 11 <= int(number[:-2]) <= 20)
    return (0.0, 6.0) if viral else (6.0, 0.0)


FASTA = f">v1 a phage\n{OPEN * 4}\n>p1 with a provirus\n{OPEN * 40}\n>o1\n{OPEN * 8}\n>v2\n{OPEN}\n"


@pytest.fixture
def planted(tmp_path: Path) -> Sample:
    return Sample(tmp_path, FASTA, viral_if)


def table_of(scores: list[float], **columns: Any) -> pa.Table:
    """Rows of EVIDENCE of contigs with these scores."""
    n = len(scores)
    known: dict[str, Any] = {
        **{field.name: [1] * n for field in EVIDENCE},
        "contig": [f"c{i}" for i in range(n)],
        "length": [1000] * n,
        "evidence_bp": [1000] * n,
        "score": scores,
        "reason": [None] * n,
        **columns,
    }
    return pa.table(
        [pa.array(known[field.name]).cast(field.type) for field in EVIDENCE], schema=EVIDENCE
    )


def test_a_provirus_is_a_region_of_a_contig_that_is_other(planted: Sample) -> None:
    calls = {row["contig"]: row for row in planted.classify().to_pylist()}
    assert (calls["p1"]["call"], calls["p1"]["regions"]) == ("other", 1)
    assert [calls[name]["regions"] for name in ("v1", "o1", "v2")] == [1, 0, 1]
    regions = planted.rows("regions.tsv")
    assert [[*row.values()] for row in regions] == [
        ["v1", "0", "120", "120", "4", "1", "whole"],
        ["p1", "300", "600", "300", "10", "0.9975", "provirus"],
        ["v2", "0", "30", "30", "1", "1", "whole"],
    ]
    fasta = gzip.decompress((planted.folder / "out/regions.fasta.gz").read_bytes()).decode()
    headers = [line for line in fasta.splitlines() if line[0] == ">"]
    assert headers == [">v1 a phage", ">p1|provirus_301_600 with a provirus", ">v2"]
    assert fasta.splitlines()[3] == OPEN * 10
    gff = (planted.folder / "out/regions.gff3").read_text().splitlines()
    assert gff[0] == "##gff-version 3"
    assert gff[2].split("\t")[:5] == ["p1", "virnucpro", "proviral_region", "301", "600"]
    assert gff[2].endswith("ID=p1|provirus_301_600;windows=10")
    summary = json.loads((planted.folder / "out/summary.json").read_text())
    assert summary["regions"] == {"total": 3, "provirus": 1}


def test_odd_ids_are_escaped_in_gff(tmp_path: Path) -> None:
    sample = Sample(tmp_path, f">v;a=b,c&d%\n{OPEN * 4}\n", viral_if)
    sample.classify()
    row = (tmp_path / "out/regions.gff3").read_text().splitlines()[1].split("\t")
    assert row[0] == "v%3Ba%3Db%2Cc%26d%25"
    assert row[8].startswith("ID=v%3Ba%3Db%2Cc%26d%25;windows=")


def test_contigs_of_little_evidence_or_length_have_no_call(planted: Sample) -> None:
    def called(**least: Any) -> dict[str, Any]:
        """Rows of v1, of 120 bases, and v2, of 30."""
        return {row["contig"]: row for row in planted.classify(**least).to_pylist()}

    assert called(min_evidence=30)["v2"]["call"] == "virus"
    rows = called(min_evidence=31)
    assert (rows["v2"]["call"], rows["v2"]["reason"]) == ("no_call", "little_evidence")
    assert rows["v2"]["score"] == 1, "what was seen is told"
    assert rows["v1"]["call"] == "virus"
    assert called(min_length=120)["v1"]["call"] == "virus"
    rows = called(min_length=121)
    assert (rows["v1"]["call"], rows["v1"]["reason"]) == ("no_call", "too_short")
    assert not rows["v1"]["regions"]


def test_evidence_counts_readable_bases_of_scored_windows_once(tmp_path: Path) -> None:
    masked = OPEN[:10] + "N" * 5 + OPEN[15:]
    sample = Sample(tmp_path, f">a\n{masked}{STOPS}\n>b\n{OPEN * 2}{OPEN[:15]}\n", viral_if)
    rows = sample.classify().to_pylist()
    assert rows[0]["evidence_bp"] == 25
    assert (rows[1]["windows"], rows[1]["evidence_bp"]) == (3, 75), "windows overlap"


def test_no_other_outranks_a_virus_by_any_criteria() -> None:
    rng = np.random.default_rng(0)
    table = table_of(rng.random(500).tolist())
    for criteria in (EVERY, replace(EVERY, max_fdr=0.1), replace(EVERY, min_score=0.9)):
        called, _, _ = decide(table, [], criteria, RULE)
        score, call = called["score"].to_numpy(), np.array(called["call"].to_pylist())
        assert score[call == "virus"].min() > score[call == "other"].max()
        assert (np.diff(called["fdr"].to_numpy()[np.argsort(-score)]) >= 0).all()


def test_a_contig_of_the_very_error_rate_that_is_allowed_is_a_virus() -> None:
    table = table_of([0.9] * 50 + [0.1] * 950)
    rate = decide(table, [], EVERY, RULE)[0]["fdr"].to_pylist()[0]
    allowed = replace(EVERY, max_fdr=float(f"{rate:.4g}"))
    assert decide(table, [], allowed, RULE)[0]["call"].to_pylist()[:50] == ["virus"] * 50


def test_windows_that_each_say_little_are_a_region_together() -> None:
    calls = WindowCalls.of(np.array([30 * 20]), 30)
    scores = np.tile(np.array([[0.29, 0.71]], np.float32), (20, 1))
    numbers = np.arange(1, 21)
    calls.add(np.zeros(20, np.int64), numbers, scores, np.zeros(20, np.bool_))
    (region,) = viral_stretches(calls, None)
    assert (region.start, region.end, region.windows) == (0, 600, 20)


def test_rows_of_a_part_of_a_batch_are_those_of_its_own_bases() -> None:
    bases = ["ACGT" * 30, "N" * 50 + "A" * 50, "C" * 90]
    batch = pa.record_batch(
        [bases, [*map(len, bases)], bases], names=["contig", "length", "sequence"]
    )
    calls = WindowCalls.of(np.array([100, 90]), 30)
    contig, number = np.array([0, 0, 0, 0, 1, 1, 1]), np.array([1, 2, 3, 4, 1, 2, 3])
    calls.add(contig, number, np.full((7, 2), 0.5, np.float32), np.zeros(7, np.bool_))
    rows = contig_rows(batch.slice(1), calls, None)
    assert rows["evidence_bp"].to_pylist() == [50, 90]


def test_a_contig_that_was_not_read_has_features_too() -> None:
    calls = WindowCalls.of(np.array([30, 30]), 30)
    contig, number = np.array([0]), np.array([1])
    calls.add(contig, number, np.array([[0.2, 0.8]], np.float32), np.zeros(1, np.bool_))
    assert calls.features().shape == (2, len(FEATURES))


def test_share_of_viruses_is_estimated_given_or_the_model_s() -> None:
    few, many = table_of([0.9] * 199), table_of([0.9] * 50 + [0.1] * 950)
    assert decide(few, [], EVERY, RULE)[2] == (PRIOR, "prior", 199)
    assert decide(table_of([0.9] * 200), [], EVERY, RULE)[2][1:] == ("estimated", 200)
    share, source, contigs = decide(many, [], EVERY, RULE)[2]
    assert (source, contigs) == ("estimated", 1000)
    assert share is not None
    assert share < 0.06
    mixed = decide(table_of([0.98] * 90 + [0.4] * 310 + [0.03] * 601), [], EVERY, RULE)[2].share
    assert str(mixed) == f"{mixed:.4g}"  # no digit more than an estimate has
    table, _, sample = decide(many, [], replace(EVERY, prevalence=0.1), RULE)
    assert sample == (0.1, "given", 1000)
    assert table["probability"][0].as_py() == pytest.approx(0.5, abs=1e-3)
    assert table["fdr"][0].as_py() == pytest.approx(0.5, abs=1e-3)
    assert decide(many, [], EVERY, None)[2] == (None, None, 1000)


def test_call_again_is_what_classify_with_these_criteria_gives(planted: Sample) -> None:
    planted.classify("fresh", min_score=0.2, sample="x")
    planted.classify("out", sample="x")
    before = (planted.folder / "out/contigs.tsv").read_bytes()
    call_again(planted.folder / "out", min_score=0.2, min_evidence=0)
    assert contents(planted.folder / "out") == contents(planted.folder / "fresh")
    assert (planted.folder / "out/contigs.tsv").read_bytes() != before
    ran = json.loads((planted.folder / "out/summary.json").read_text())["ran"]
    stages = [[*one["seconds"]] for one in ran]
    assert stages == [["embed", "classify"], ["call"]]


def test_call_again_writes_the_page_anew_where_there_is_one(planted: Sample) -> None:
    for name in ("paged", "bare"):
        planted.classify(name)
    page = planted.folder / "paged/report.html"
    write_report([page.parent], page)
    before = page.read_bytes()
    for name in ("paged", "bare"):
        call_again(planted.folder / name, min_score=0.2, min_evidence=0)
    assert page.read_bytes() != before
    assert not (planted.folder / "bare/report.html").exists()


@pytest.mark.parametrize("damage", ["nothing there", "another version", "no scores", "no bases"])
def test_call_again_of_what_cannot_be_called_changes_nothing(damage: str, planted: Sample) -> None:
    planted.classify()
    out = planted.folder / "out"
    summary = out / "summary.json"
    about = json.loads(summary.read_text())
    match damage:
        case "nothing there":
            out = planted.folder / "none"
        case "another version":
            summary.write_text(json.dumps({**about, "format": 1}))
        case "no scores":
            (out / "frames.parquet").write_bytes(planted.frames[0].read_bytes())
        case "no bases":
            (out / "contigs.parquet").unlink()
    before = {path.name: path.read_bytes() for path in planted.folder.glob("out/*")}
    with pytest.raises(InputError):
        call_again(out, min_score=0.2)
    assert {path.name: path.read_bytes() for path in planted.folder.glob("out/*")} == before
    assert not (planted.folder / "none").exists()
