"""The GPUs of a run, on the report's page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pages import classified

from virnucpro_core.errors import InputError
from virnucpro_core.results.report import write_report

RECORD: dict[str, Any] = {
    "gpu": "GPU-1", "begun": 0.0, "samples": 3, "limit_w": 700, "limit_bytes": 80e9, "others": 0,
    "held_back": {"power": 0.5, "heat": 0.0, "supply": 0.0},
    "mean": {"busy": 0.95, "power_w": 650, "memory_bytes": 10e9},
    "seconds": [1.0, 2.0, 4.0], "busy": [0.0, 0.5, 1.0], "power_w": [70, 350, 900],
    "memory_bytes": [8e9, 8e9, 8e9],
}  # fmt: skip


@pytest.fixture
def page(tmp_path: Path) -> Any:
    """The report's page of a sample, with such records of its GPUs."""

    def of(*records: Any) -> str:
        out = classified(tmp_path / "out", [("c", 500, "virus", 0.9)])
        path = out / "summary.json"
        summary = json.loads(path.read_text())
        on = {"device": "<H100>", "precision": "fp16", "peak_bytes": 1, "gpus": list(records)}
        path.write_text(json.dumps({**summary, "embedded_on": [on]}))
        write_report([out], out / "report.html")
        return (out / "report.html").read_text()

    return of


def test_series_of_a_gpu_is_drawn_within_its_limits(page: Any) -> None:
    text = page(RECORD)
    assert "<b>&lt;H100&gt;</b>" in text
    assert "GPU busy 0.95, 650 W of 700, at its power limit 50% of the time" in text
    assert 'points="105.0,44.0 210.0,22.0 420.0,0.0"' in text  # busy
    assert 'points="105.0,39.6 210.0,22.0 420.0,0.0"' in text  # power, cut at the limit
    assert "700 W</text>" in text
    assert "80 GB</text>" in text
    assert "Temperature" not in text


def test_series_of_one_sample_is_drawn(page: Any) -> None:
    one = {name: RECORD[name][:1] for name in ("busy", "power_w", "memory_bytes")}
    assert 'points="0.0,44.0"' in page({**RECORD, **one, "seconds": [0.0]})


def test_limit_that_a_driver_does_not_know_refuses_no_page(page: Any) -> None:
    assert "1,000 W</text>" in page({**RECORD, "limit_w": 0})


@pytest.mark.parametrize(("samples", "opened"), [(3, " open"), (4, "")])
def test_charts_of_many_samples_are_folded(samples: int, opened: str, tmp_path: Path) -> None:
    on = {"device": "H100", "precision": "fp16", "peak_bytes": 1, "gpus": [RECORD]}
    outs = [
        classified(tmp_path / name, [("c", 500, "virus", 0.9)], name, embedded_on=[on])
        for name in "abcd"[:samples]
    ]
    write_report(outs, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert f"<details{opened}><summary>GPUs at work</summary>" in page
    assert page.count('<figure class="gpu">') == samples


def test_run_without_gpus_has_no_chart_of_them(page: Any) -> None:
    assert "GPUs at work" not in page()


@pytest.mark.parametrize(
    "change",
    [{"seconds": []}, {"busy": [1.0]}, {"busy": [1.0, "x", 1.0]}, {"power_w": [-1, 0, 0]},
     {"mean": 3}],
)  # fmt: skip
def test_series_that_is_none_is_refused(change: dict[str, Any], page: Any) -> None:
    with pytest.raises(InputError, match="is no summary of a classified sample"):
        page({**RECORD, **change})
