"""Content for MultiQC, which lies beside the page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pages import ROWS, classified

from virnucpro_core.results import multiqc
from virnucpro_core.results.calls import CALLS
from virnucpro_core.results.report import PAGE, write_report
from virnucpro_core.version import __version__


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
