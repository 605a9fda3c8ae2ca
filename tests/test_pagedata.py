"""What the page's script reads: which contigs, and their frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pages import ROWS, Row, classified, report
from sample import FASTA, Sample, viral

from virnucpro_core.results import pagedata
from virnucpro_core.results.pagedata import FRAME_COLUMNS


def test_the_page_holds_the_best_contigs_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagedata, "LISTED", 500)
    rng = np.random.default_rng(1)
    scores = rng.random(1500).round(6).tolist()
    rows: list[Row] = [
        (f"c{i}", 100 + i, "virus" if s > 0.5 else "other", s) for i, s in enumerate(scores)
    ]
    page = report([classified(tmp_path / "a", rows)], tmp_path / "report.html")
    best = sorted(range(len(rows)), key=lambda i: -scores[i])[:500]
    assert [row["contig"] for row in page.contigs] == [f"c{i}" for i in best]
    assert "The 500 with the highest score, of 1,500" in page.words


def test_frames_of_viewed_contigs_are_those_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of three rows, so that a contig's frames lie in several."""
    monkeypatch.setattr(pagedata, "FRAME_ROWS", 3)
    sample = Sample(tmp_path, FASTA, viral)
    sample.classify()
    page = report([tmp_path / "out"], tmp_path / "report.html")
    total = page.about["frames"]
    columns: dict[str, list[int]] = {name: [] for name in FRAME_COLUMNS}
    for number in range(-(-total // 3)):
        whole, at, n = page.block(f"frames{number}"), 0, min(3, total - 3 * number)
        for name, kind in FRAME_COLUMNS.items():
            part = np.frombuffer(whole, f"<{kind}", n, at)
            at += part.nbytes
            if name in ("window", "start"):
                part = np.cumsum(part, dtype=np.uint32)
            columns[name] += part.tolist()
    frames = pq.read_table(tmp_path / "out/frames.parquet").to_pylist()
    assert total == len(frames)
    for contig in page.contigs:
        own = [row for row in frames if row["contig"] == contig["contig"]]
        assert contig["view_rows"] == len(own)
        for i, row in enumerate(own, contig["view_at"]):
            name = page.about["frame_names"][columns["frame"][i]]
            assert (name, columns["window"][i]) == (row["frame"], row["window"])
            place = columns["start"][i], columns["start"][i] + columns["span"][i]
            assert place == (row["start"], row["end"])
            assert columns["both"][i] == round(row["score_virus"] * 10_000)


def test_views_beyond_what_a_page_holds_go_to_viral_contigs_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagedata, "VIEWED", 45)
    sample = Sample(tmp_path, FASTA, viral)
    sample.classify()
    page = report([tmp_path / "out"], tmp_path / "report.html")
    calls = {page.about["calls"][row["call"]] for row in page.contigs if row["view_rows"]}
    assert calls == {"virus"}
    assert 0 < page.about["views"] < len(page.contigs)


def test_a_million_contigs_make_a_page_that_opens(tmp_path: Path) -> None:
    out = classified(tmp_path / "a", ROWS)
    with (out / "contigs.tsv").open("a") as handle:
        handle.writelines(
            f"c{i}\t{500 + i % 9000}\t1\t1\t2\t500\t0\t0.0\t0.1\t{i % 997 / 2000}"
            "\t0.0\t\t\t0\tother\t\n"
            for i in range(1_000_000)
        )
    page = report([out], tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 8_000_000
    assert page.about["contigs"] == pagedata.LISTED
