"""The report: one page that stands alone, says what the tables say, and trusts no name in them."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sample import FASTA, Sample, viral
from test_cli import virnucpro

from virnucpro_core.errors import InputError
from virnucpro_core.results import multiqc, pagedata
from virnucpro_core.results.calls import CALLS, REASONS
from virnucpro_core.results.criteria import Criteria
from virnucpro_core.results.figures import ScoreGrid
from virnucpro_core.results.pagedata import CONTIG_COLUMNS, FRAME_COLUMNS
from virnucpro_core.results.report import PAGE, SCRIPTS, write_report
from virnucpro_core.schema import CONTIGS
from virnucpro_core.version import __version__

Row = tuple[str, int, str, float | None]


CRITERIA = Criteria("balanced", 0.5, None, 0, 150, None)


def classified(folder: Path, rows: list[Row], name: str = "S", **changes: Any) -> Path:
    """A folder as `classify` leaves it, of contigs given as (id, length, call or reason, score)."""
    folder.mkdir(parents=True)
    lines = ["\t".join(CONTIGS.names)]
    calls: Counter[str] = Counter()
    for contig, length, call, score in rows:
        calls[call] += 1
        if score is None:
            lines.append(f"{contig}\t{length}\t1\t0\t0\t0\t0" + "\t" * 7 + f"0\tno_call\t{call}")
        else:
            viral = int(call == "virus")
            lines.append(
                f"{contig}\t{length}\t1\t1\t2\t{length}\t{viral}\t{viral}.0\t{score}\t{score}\t"
                f"{score}\t\t\t{viral}\t{call}\t"
            )
    (folder / "contigs.tsv").write_text("\n".join(lines) + "\n")
    no_call = {reason: calls[reason] for reason in REASONS}
    summary = {
        "format": 1,
        "sample": name,
        "model": "mini",
        "window": 500,
        "genetic_code": "1",
        "weights": {"classifier.safetensors": "ab" * 32},
        "precision": "fp32",
        "packed": True,
        "version": "9.9.9",
        "criteria": CRITERIA.record(),
        "prevalence": {"share": None, "source": None, "contigs": 9},
        "contigs": {
            "total": len(rows),
            "virus": calls["virus"],
            "other": calls["other"],
            "no_call": sum(no_call.values()),
        },
        "no_call": no_call,
        "windows": {"total": len(rows), "called": len(rows), "virus": calls["virus"]},
        "frames": {"total": 2 * len(rows), "virus": 0},
        "bases": {"total": sum(row[1] for row in rows), "virus": 0},
    }
    (folder / "summary.json").write_text(json.dumps({**summary, **changes}))
    return folder


ROWS: list[Row] = [
    ("phage", 48502, "virus", 0.98772),
    ("host", 9000, "other", 0.0123),
    ("tiny", 2, "too_short", None),
    ("closed", 700, "no_stop_free_frame", None),
]


class Page(HTMLParser):
    """Checks that tags are balanced; keeps what tests ask for."""

    VOID = frozenset({"meta", "br", "input", "link", "img", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.data: dict[str, str] = {}
        self.script = ""
        self._block = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert len(given) == len(attrs), f"an attribute twice in {tag}"
        self.attributes.append((tag, given))
        if tag == "script":
            self._block = given.get("id") or ""
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script" and self._block:
            self.data[self._block] = self.data.get(self._block, "") + data
        elif self.open and self.open[-1] == "script":
            self.script += data
        elif not self.open or self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))

    @property
    def about(self) -> dict[str, Any]:
        about: dict[str, Any] = json.loads(self.data["about"])
        return about

    def block(self, name: str) -> bytes:
        return gzip.decompress(base64.b64decode(self.data[f"data-{name}"]))

    @property
    def contigs(self) -> list[dict[str, Any]]:
        """What the page's script makes of the data: a row a contig, in the order of the page."""
        n, whole, at = self.about["contigs"], self.block("contigs"), 0
        columns: dict[str, list[Any]] = {"contig": self.block("names").decode().split("\n")}
        for name, kind in CONTIG_COLUMNS.items():
            assert at % int(kind[1]) == 0, "a typed array begins at a multiple of its values' size"
            columns[name] = np.frombuffer(whole, f"<{kind}", n, at).tolist()
            at += n * int(kind[1])
        assert at == len(whole)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def report(outs: list[Path], path: Path, **options: Any) -> Page:
    write_report(outs, path, **options)
    return Page(path.read_text(encoding="utf-8"))


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


def test_report_memory_of_several_samples_is_the_most_of_them(tmp_path: Path) -> None:
    on = {"device": "CPU", "precision": "fp32", "tasks": 1}
    folders = [
        classified(tmp_path / name, ROWS, name, embedded_on=[{**on, "peak_bytes": gib << 30}])
        for name, gib in (("one", 2), ("two", 3))
    ]
    write_report(folders, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<dd>CPU, fp32, at most 3.0 GiB</dd>" in page


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
    assert "1 of 1 samples was left out" in alone.words


def test_results_of_earlier_runs_are_named_and_not_counted(tmp_path: Path) -> None:
    virnucpro("report", classified(tmp_path / "a", ROWS), "-o", tmp_path / "r.html")
    assert "earlier runs" not in (tmp_path / "r.html").read_text()
    words = [word for number in range(22) for word in ("--earlier", f"old{number}")]
    virnucpro("report", tmp_path / "a", *words, "--earlier", "S", "-o", tmp_path / "r.html")
    page = Page((tmp_path / "r.html").read_text())
    assert "results of earlier runs that it does not include: old0, old1," in page.words
    assert "old19 and 2 more." in page.words
    assert "1 of 4 contigs is called virus" in page.words


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


def test_multiqc_content_lies_beside_the_page(tmp_path: Path) -> None:
    ran: dict[str, Any] = {"command": None, "date": "2026-01-02T03:04:05Z", "seconds": {}}
    ran["versions"] = {"virnucpro": "9.9.8", "torch": "2.10.0"}
    outs = [
        classified(tmp_path / "a", ROWS, "A", ran=[ran]),
        classified(tmp_path / "b", ROWS[:1], "B"),
    ]
    write_report(outs, tmp_path / "report.html")
    found = {p.name: json.loads(p.read_text()) for p in tmp_path.glob("*_mqc*")}
    versions = found.pop("virnucpro_mqc_versions.yml")["VirNucPro"]
    assert versions == {"virnucpro": [__version__, "9.9.8", "9.9.9"], "torch": "2.10.0"}
    assert len({one["id"] for one in found.values()}) == 4
    table, bars = found["virnucpro_mqc.json"], found["virnucpro_calls_mqc.json"]
    assert (table["plot_type"], bars["plot_type"]) == ("table", "bargraph")
    assert table["data"]["A"]["contigs"] == 4
    assert table["data"]["A"]["other"] == 1
    assert table["headers"].keys() == table["data"]["B"].keys()
    assert bars["data"] == {
        "A": {"virus": 1, "other": 1, "no_call": 2},
        "B": {"virus": 1, "other": 0, "no_call": 0},
    }
    assert [*bars["data"]["A"]] == [*bars["categories"]] == [*CALLS]
    general = found["virnucpro_general_mqc.json"]
    assert general["plot_type"] == "generalstats"
    assert general["data"]["A"]["virus_percent"] == 25
    lines = found["virnucpro_scores_mqc.json"]["data"]
    assert lines["A"]["0.9875"] == lines["A"]["0.0125"] == 50
    assert sum(lines["B"].values()) == 100


@pytest.mark.skipif(shutil.which("multiqc") is None, reason="no MultiQC on PATH")
def test_multiqc_reads_all_of_its_content(tmp_path: Path) -> None:
    outs = [classified(tmp_path / name, ROWS, name) for name in ("A", "B")]
    write_report(outs, tmp_path / "in/report.html")
    run = ["multiqc", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--strict"]
    subprocess.run(run, check=True, capture_output=True)
    data = tmp_path / "out/multiqc_data"
    general = (data / "multiqc_general_stats.txt").read_text().splitlines()
    assert [line.split("\t")[:2] for line in general[1:]] == [["A", "25.0"], ["B", "25.0"]]
    plots = {path.stem for path in data.glob("multiqc_virnucpro_*.txt")}
    assert {name.removeprefix("multiqc_virnucpro_") for name in plots} == {
        *("samples_table", "calls_plot", "scores_plot")
    }
    assert "9.9.9" in (data / "multiqc_software_versions.txt").read_text()


def test_multiqc_has_the_colours_of_the_page() -> None:
    style = (PAGE / "page.css").read_text().split("@media")[0]
    colours = dict(re.findall(r"--(virus|other|no_call): (#\w+);", style))
    assert colours == multiqc.COLOURS


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
    own = report([classified(tmp_path / "b", ROWS, model="own")], tmp_path / "r.html")
    assert "Called with mini" not in own.words


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


def test_report_is_written_without_torch() -> None:
    script = "import sys, virnucpro_core.results.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


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
