"""The report: one page that stands alone, says what the tables say, and trusts no name in them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pages import ROWS, Page, Row, classified, report
from test_cli import virnucpro

from virnucpro_core.errors import InputError
from virnucpro_core.results.figures import ScoreGrid, duration
from virnucpro_core.results.report import PAGE, SCRIPTS, write_report
from virnucpro_core.schema import CONTIGS


def test_the_page_says_what_the_tables_say(tmp_path: Path) -> None:
    page = report([classified(tmp_path / "a", ROWS)], tmp_path / "report.html")
    assert "1 of 4 contigs is called virus" in page.words
    assert "mini , windows of 500 bases" in page.words
    assert "VirNucPro 9.9.9" in page.words
    assert "ab" * 32 in page.words
    assert [row["contig"] for row in page.contigs] == ["phage", "host", "closed", "tiny"]
    first = page.contigs[0]
    assert (first["length"], first["viral_windows"], first["frames"]) == (48502, 1, 2)
    assert round(first["score"], 6) == 0.98772
    assert [page.about["calls"][row["call"]] for row in page.contigs[:2]] == ["virus", "other"]
    assert page.about["reasons"][page.contigs[2]["reason"]] == "no_stop_free_frame"
    assert np.isnan(page.contigs[2]["score"])
    assert ("a", {"href": "a/contigs.tsv"}) in page.attributes


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = report([classified(tmp_path / "a", ROWS)], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    for tag, attributes in page.attributes:
        assert tag not in ("link", "img", "iframe")
        assert "src" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
    policy = str(next(a["content"] for _, a in page.attributes if "http-equiv" in a))
    assert policy.startswith("default-src 'none'")
    own = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert f"script-src 'sha256-{own}';" in policy, "no other script may run"


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not here")
def test_the_script_is_one_that_parses(tmp_path: Path) -> None:
    (tmp_path / "page.mjs").write_text("\n".join((PAGE / name).read_text() for name in SCRIPTS))
    subprocess.run(["node", "--check", tmp_path / "page.mjs"], check=True)


def test_names_from_the_input_are_escaped(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>&amp;<img/src=x onerror=y>'
    rows: list[Row] = [(evil, 100, "virus", 0.9), ("a'b", 100, "other", 0.1)]
    out = classified(tmp_path / 'o"<u>&t', rows, name="</title><b>", model="<i>m</i>")
    page = report([out], tmp_path / "report.html", title="<s>")
    scripts = [given.get("type") for tag, given in page.attributes if tag == "script"]
    assert scripts == ["application/json", *["text/plain"] * 3, "module"]
    assert not {tag for tag, _ in page.attributes} & {"img", "s", "u"}
    assert page.contigs[0]["contig"] == evil
    assert page.about["samples"][0]["sample"] == "</title><b>"
    assert "</title><b>" in page.words
    assert ("a", {"href": "o%22%3Cu%3E%26t/contigs.tsv"}) in page.attributes


def test_accessible_names_are_there(tmp_path: Path) -> None:
    page = report([classified(tmp_path / "a", ROWS)], tmp_path / "report.html")
    ids = [a["id"] for _, a in page.attributes if "id" in a]
    assert len(ids) == len(set(ids))
    hrefs = [a["href"] or "" for tag, a in page.attributes if tag == "a"]
    assert {href[1:] for href in hrefs if href.startswith("#")} <= set(ids)
    for tag, attributes in page.attributes:
        if attributes.get("role") == "img" or tag == "svg":
            named = attributes.get("aria-label") or attributes.get("aria-labelledby")
            assert named
            assert all(part in ids for part in named.split()) or "aria-label" in attributes
        if tag == "th":
            assert attributes.get("scope") in ("col", "row")
    assert ("html", {"lang": "en"}) in page.attributes
    assert sum(tag == "caption" for tag, _ in page.attributes) == 2


def test_several_samples_are_told_apart(tmp_path: Path) -> None:
    first = classified(tmp_path / "a", ROWS, "A")
    second = classified(tmp_path / "b", [("x", 10, "other", 0.5)], "B", precision="bf16")
    page = report([first, second], tmp_path / "in/report.html")
    assert "1 of 5 contigs is called virus" in page.words
    found = [(page.about["samples"][r["sample"]]["sample"], r["contig"]) for r in page.contigs]
    assert found[:3] == [("A", "phage"), ("B", "x"), ("A", "host")]
    assert ("a", {"href": "../b/contigs.tsv"}) in page.attributes
    assert "bf16" in page.words
    assert "fp32" in page.words


def test_report_memory_of_samples_is_the_most_and_time_the_sum_of_theirs(tmp_path: Path) -> None:
    on = {"device": "CPU", "precision": "fp32", "seconds": 61.4}
    folders = [
        classified(
            *(tmp_path / name, ROWS, name),
            embedded_on=[{**on, "peak_bytes": gib << 30, "tasks": tasks}],
        )
        for name, gib, tasks in (("one", 2, 1), ("two", 3, 2))
    ]
    write_report(folders, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<dd>CPU, fp32: 2 min 3 s of 3 processes, at most 3.0 GiB of memory</dd>" in page


def test_sample_that_was_left_out_stands_there_with_its_reason(tmp_path: Path) -> None:
    refused = tmp_path / "broken"
    refused.mkdir()
    (refused / "refused.txt").write_text("virnucpro: a<b.fa, line 2: 'L' is no nucleotide.\n")
    outs = [refused, classified(tmp_path / "a", ROWS, "A")]
    page = report(outs, tmp_path / "report.html")
    assert "1 sample (A)" in page.words
    assert page.words.index("broken") < page.words.index(" A 4 1 "), "in the order of the samples"
    assert "1 of 2 samples was left out : no count on this page includes it." in page.words
    assert "broken Left out a<b.fa, line 2: 'L' is no nucleotide." in page.words
    table = json.loads((tmp_path / "virnucpro_mqc.json").read_text())
    assert "Left out: broken (a&lt;b.fa, line 2: " in table["description"]
    assert [*table["data"]] == ["A"]
    alone = report([refused], tmp_path / "alone.html")
    assert "1 of 1 sample was left out" in alone.words
    assert "0 reading frames scored 1 of 1" in alone.words, "no model is named where none worked"
    assert "No contig has a score." in alone.words
    assert "No sample has results." in alone.words


def test_results_of_earlier_runs_are_named_and_not_counted(tmp_path: Path) -> None:
    virnucpro("report", classified(tmp_path / "a", ROWS), "-o", tmp_path / "r.html")
    assert "earlier runs" not in (tmp_path / "r.html").read_text()
    words = [word for number in range(22) for word in ("--earlier", f"old{number}")]
    virnucpro("report", tmp_path / "a", *words, "--earlier", "S", "-o", tmp_path / "r.html")
    page = Page((tmp_path / "r.html").read_text())
    assert "results of earlier runs that it does not include: old0, old1," in page.words
    assert "old19 and 2 more." in page.words
    assert "1 of 4 contigs is called virus" in page.words


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    out = classified(tmp_path / "a", ROWS)
    write_report([out], tmp_path / "1.html")
    write_report([out], tmp_path / "2.html")
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_sample_of_nothing_but_no_calls_has_a_report(tmp_path: Path) -> None:
    rows: list[Row] = [("a", 2, "too_short", None)]
    page = report([classified(tmp_path / "a", rows)], tmp_path / "report.html")
    assert "0 of 1 contig is called virus" in page.words
    empty = classified(tmp_path / "e", [], "E")
    assert "0 of 0 contigs" in report([empty], tmp_path / "empty.html").words


def test_figures_count_every_scored_contig() -> None:
    rng = np.random.default_rng(2)
    lengths = np.exp(rng.normal(8, 2, 5000)).astype(np.int64)
    scores = rng.random(5000, np.float32)
    scores[:2] = 0, 1
    scored = ScoreGrid()
    for part in np.array_split(np.arange(5000), 7):
        scored.add(lengths[part], scores[part], scores[part] > 0.6)
    for figure in (scored.histogram(), scored.scatter()):
        for call, expected in (("virus", (scores > 0.6).sum()), ("other", (scores <= 0.6).sum())):
            assert sum(m.count for m in figure.marks if m.call == call) == expected
            for mark in figure.marks:  # what it leads to is what it counts
                show = json.loads(mark.show)
                own = (scores > 0.6) == (mark.call == "virus")
                printed = scores.astype(np.float64).round(6)
                own &= (printed >= show["score_from"]) & (printed < show.get("score_below", 2))
                own &= (lengths >= show.get("length_from", 0)) & (
                    lengths <= show.get("length_to", 1e99)
                )
                assert own.sum() == mark.count
        for mark in figure.marks:
            assert 56 <= mark.x <= 508
            assert 11.9 <= mark.y <= 262


def test_what_ran_is_on_the_page(tmp_path: Path) -> None:
    ran = {
        "command": "virnucpro predict 'a b.fa' -o <out>",
        "date": "2026-01-02T03:04:05Z",
        "seconds": {"embed": 12.34},
        "versions": {"python": "3.12.1", "cuda": "12.8"},
    }
    given = [{"name": "a<b.fa", "bytes": 1234, "sha256": "x"}]
    page = report([classified(tmp_path / "a", ROWS, ran=[ran], input=given)], tmp_path / "r.html")
    assert "a<b.fa (1,234 bytes)" in page.words
    assert "2026-01-02 03:04 UTC virnucpro predict 'a b.fa' -o <out> embed 12.3 s" in page.words
    assert "python 3.12.1, cuda 12.8" in page.words
    assert "Called with mini" in page.words
    assert "Time embed" not in page.words
    own = report([classified(tmp_path / "b", ROWS, model="own")], tmp_path / "r.html")
    assert "Called with mini" not in own.words


def test_a_run_of_several_samples_shows_what_a_user_ran_and_the_time_of_all(tmp_path: Path) -> None:
    ran = {"command": "virnucpro classify x", "date": "2026-01-02T03:04:05Z", "versions": {}}
    outs = [
        classified(tmp_path / name, ROWS, name, ran=[{**ran, "seconds": {"embed": spent}}])
        for name, spent in (("a", 60.0), ("b", 3 * 3600.0))
    ]
    words = ["--command", "nextflow run main.nf --input '<a b>'", "--run-name", "mad_<b>volta"]
    virnucpro("report", *outs, *words, "-o", tmp_path / "r.html")
    page = Page((tmp_path / "r.html").read_text())
    assert "Command nextflow run main.nf --input '<a b>' Run mad_<b>volta" in page.words
    assert "Time embed 3 h 1 min (all samples" in page.words
    assert "2026-01-02 03:04 UTC embed 1 min 0 s" in page.words
    assert "virnucpro classify" not in page.words


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        *(
            (0.04, "<0.1 s"),
            (0.05, "0.1 s"),
            (59.94, "59.9 s"),
            (59.96, "1 min 0 s"),
            (3599.4, "59 min 59 s"),
        ),
        *((3599.6, "1 h 0 min"), (3629, "1 h 0 min"), (3600 * 4321, "4,321 h 0 min")),
    ],
)
def test_durations_are_told_in_two_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_folders_that_are_not_classified_are_refused(tmp_path: Path) -> None:
    good = classified(tmp_path / "good", ROWS)
    page = tmp_path / "report.html"

    def refused(mentions: str, *outs: Path) -> None:
        with pytest.raises(InputError, match=mentions):
            write_report(outs, page)
        assert not page.exists()

    refused("no folder")
    refused(r"absent/summary\.json: no such file", tmp_path / "absent")
    refused("another folder is of a sample 'S'", good, classified(tmp_path / "same", ROWS))
    bare = classified(tmp_path / "bare", ROWS, "bare")
    (bare / "contigs.tsv").unlink()
    refused(r"contigs\.tsv: no such file", bare)
    for text in ("contig\tlength\n", "", "contig\n\x00\n", "\t".join(CONTIGS.names) + "\na\tb\n"):
        (bare / "contigs.tsv").write_text(text)
        refused(r"is no contigs\.tsv of ours", bare)
    for summary in ("", "[]", "{}", '{"contigs": {"total": "many"}}'):
        (bare / "summary.json").write_text(summary)
        refused("is no summary of a classified sample", bare)


def test_report_is_written_without_torch() -> None:
    script = "import sys, virnucpro_core.results.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
