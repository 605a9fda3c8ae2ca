"""The benchmark and the profile, at small size on the CPU."""

from __future__ import annotations

import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
import torch

from virnucpro_core.embedding.timing import Stages
from virnucpro_core.errors import InputError
from virnucpro_core.lab.benchmark import benchmark
from virnucpro_core.lab.benchmark.lines import Line
from virnucpro_core.lab.benchmark.plot import plot
from virnucpro_core.lab.machine import machine
from virnucpro_core.lab.profiling import _shared_out, lines, profile
from virnucpro_core.models.store import Model

CPU = torch.device("cpu")


def test_benchmark_sections_are_shown_and_written(tmp_path: Path) -> None:
    shown: list[str] = []
    sections = ["dnabert_s", "accuracy", "embed"]
    found = benchmark(tmp_path, devices=[CPU], sections=sections, show=shown.append)
    record = json.loads((tmp_path / "benchmark.json").read_text())
    assert [line["name"] for line in record["lines"]] == [line.name for line in found]
    assert shown[1:] == [str(line) for line in found]
    assert record["machine"]["torch"] == torch.__version__.split("+")[0]
    values = {line.name: line.value for line in found}
    assert values["ESM-2 fp16 to fp32: least cosine"] > 0.999
    assert values["start to first batch, kernel cache warm"] > 0
    assert all(value > 0 for value in values.values())
    ElementTree.parse(tmp_path / "benchmark.svg")


def test_benchmark_of_a_cpu_is_faster_than_torch_as_it_comes(tmp_path: Path) -> None:
    found = benchmark(devices=[CPU], sections=["cpu"], show=lambda _: None)
    values = {line.name: line.value for line in found}
    assert values["mini, fp32: to torch as it comes"] > 1
    assert 0 < values["mini, fp32: share of the chain"] < 1
    assert not os.environ.keys() & {"VIRNUCPRO_KERNELS", "VIRNUCPRO_ATTENTION"}


def test_benchmark_unknown_section_is_refused() -> None:
    with pytest.raises(InputError, match="section 'speed' is not known"):
        benchmark(devices=[CPU], sections=["speed"])


def test_machine_without_nvidia_smi_is_still_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "some GPU")
    about = machine(torch.device("cuda:0"))
    assert (about["device"], about["driver"]) == ("some GPU", "unknown")


def test_line_verdict_compares_with_its_bar() -> None:
    assert Line("share", 0.94, "", 0.93).verdict == "pass"
    assert Line("share", 0.92, "", 0.93).verdict == "FAIL"
    assert Line("seconds", 19, "s", 20, at_most=True).verdict == "pass"
    assert Line("seconds", 21, "s", 20, at_most=True).verdict == "FAIL"
    assert Line("tokens", 5, "tokens/s").verdict == ""


def test_plot_marks_what_missed_its_bar() -> None:
    missed, passed = Line("a < b", 1, "", 2), Line("c", 3, "", 2)
    drawn = plot([missed, passed, Line("no bar", 1, "")], {"device": "some GPU"})
    assert "a &lt; b" in drawn
    assert "no bar" not in drawn
    assert drawn.count("#b8423b") == drawn.count("#2a7f62") == 1


def test_stages_side_by_side_add_up_to_the_run() -> None:
    """Four threads in one stage, for a while beside another: no more seconds than the clock's."""
    stages = Stages()
    start = time.perf_counter()

    def work(stage: str) -> None:
        with stages(stage):
            time.sleep(0.2)

    with ThreadPoolExecutor(5) as executor:
        list(executor.map(work, ["compute"] * 4 + ["read"]))
    with stages("write"):
        time.sleep(0.1)
    whole = time.perf_counter() - start
    assert 0.9 * whole < sum(stages.seconds.values()) <= whole
    assert stages.seconds["compute"] == pytest.approx(4 * stages.seconds["read"], rel=0.2)
    assert re.search(r"compute 0\.\d s \(0\.\d s of threads side by side\)", str(stages))


def test_kernels_side_by_side_share_their_time() -> None:
    seconds = _shared_out([(0.0, 2.0, "gemm"), (1.0, 3.0, "copy out"), (4.0, 5.0, "gemm")])
    assert seconds == {"gemm": 2.5, "copy out": 1.5}


def test_profile_names_every_stage_of_a_run(edge_frames: Path, tiny: Model) -> None:
    result = profile(edge_frames, tiny, CPU, "fp32")
    assert set(result["stages"]) == {"read", "tokenise", "compute", "write", "begin", "finish"}
    assert result["frames"] == len(pq.read_table(edge_frames))
    assert result["file to file"]["seconds"] > result["stages"]["begin"] > 0
    assert any(line.startswith("tokenise") for line in lines(result))
    shares = [float(line.split()[-1][:-1]) for line in lines(result) if line.endswith("%")]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert sum(result["stages"].values()) <= result["file to file"]["seconds"]
    assert [path.name for path in edge_frames.parent.iterdir()] == [edge_frames.name]
