"""What a run takes, said before it starts and when it does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from test_options import Run, sees

from virnucpro_core import estimate as estimated
from virnucpro_core.estimate import Amount, Sizes, amount_in, estimate, on_gpu, sizes_of
from virnucpro_core.host import cores
from virnucpro_core.lab import estimate as counting
from virnucpro_core.lab.estimate import amount_of
from virnucpro_core.models.store import Model, resolve_model
from virnucpro_core.sequences import frames
from virnucpro_core.sequences.pace import PARAMETERS, device_class, tokens_a_second
from virnucpro_core.sequences.split import split
from virnucpro_core.sequences.translate import translate

CPU = [torch.device("cpu")]
PUBLISHED = Sizes("virnucpro-500", 500, 3328, 2.96e9, 2560)
WORK = Amount(1000, 1_765_128, 4119, 2821, 440_734, exact=True)
"""The gut sample of docs/usage.md."""


def test_counts_of_an_input_are_those_of_its_tables(edge: Path, tmp_path: Path) -> None:
    counted = amount_of([edge], 300)
    translate(split([edge], tmp_path), tmp_path / "f.parquet", 300)
    assert counted == amount_in(tmp_path / "contigs.parquet", tmp_path / "f.parquet", 300)
    proteins = pq.read_table(tmp_path / "f.parquet")["protein"]
    assert counted.frames == len(proteins) > 0
    assert counted.tokens == pc.sum(pc.binary_length(proteins)).as_py() + 2 * len(proteins)
    assert counted.exact


def test_large_input_is_scaled_up_from_a_sample_of_it(
    fastas: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = fastas["virus"].read_text()
    many = tmp_path / "many.fa"
    many.write_text("".join(text.replace(">", f">{n}_") for n in range(20)))
    truth = amount_of([many], 300)
    translated = []

    def frame_parts(contigs: list[object], window: int, **options: object) -> object:
        translated.extend(contigs)
        return frames.frame_parts(contigs, window)  # type: ignore[arg-type]

    monkeypatch.setattr(counting, "frame_parts", frame_parts)
    monkeypatch.setattr(counting, "batches", lambda contigs: frames.batches(contigs, 30_000))
    monkeypatch.setattr(counting, "SAMPLE", 100_000)
    about = amount_of([many], 300)
    assert len(translated) < truth.contigs / 3
    assert about[:3] == truth[:3]
    assert not about.exact
    assert about.frames == pytest.approx(truth.frames, rel=0.03)
    assert about.tokens == pytest.approx(truth.tokens, rel=0.03)
    assert f"about {about.frames:,} frames" in str(about)


@sees("estimate", "--model", "--models-dir", "--device", "--device-class", "--output", "--json")
def test_estimate_says_what_a_run_will_take_and_writes_nothing_else(
    ask: Callable[..., str], run: Run, model: list[object], edge: Path, tmp_path: Path
) -> None:
    record, out = tmp_path / "e.json", tmp_path / "none" / "out"
    words = ["estimate", edge, *model, "--device", "cpu", "--output", out, "--json", record]
    said = ask(*words, "--device-class", "h100,t4")
    about = json.loads(record.read_text())
    assert about["contigs"] == 44
    assert [place["device"] for place in about["elsewhere"]] == ["h100", "t4"]
    assert about["here"]["precision"] == "fp32"
    assert about["disk"]["while_it_runs"] > about["disk"]["results"] > 0
    assert "44 contigs" in said
    assert f"free in {out}" in said
    assert "h100 in fp16: " in said
    assert list(tmp_path.iterdir()) == [record]
    assert "h100" not in ask(*words, "--device-class", "none")
    assert "v100" in ask(*words)
    code, _, err = run(*words, "--device-class", "h100,abacus")
    assert (code, "'abacus': choose of t4" in err) == (2, True)


@sees("estimate", "--genetic-code")
def test_code_that_reads_stops_otherwise_gives_more_frames(
    ask: Callable[..., str], model: list[object], tmp_path: Path
) -> None:
    (tmp_path / "a.fa").write_text(f">a\n{'GATTGAGCT' * 100}\n")

    def frames(code: str) -> int:
        out = tmp_path / f"{code}.json"
        ask("estimate", tmp_path / "a.fa", *model, "--genetic-code", code, "--json", out)
        translate([tmp_path / "a.fa"], tmp_path / "f.parquet", 300, code=code)
        count: int = json.loads(out.read_text())["frames"]
        assert count == pq.read_metadata(tmp_path / "f.parquet").num_rows
        return count

    assert frames("4") > frames("1")


@sees("estimate", "--precision")
def test_published_model_is_estimated_before_it_is_fetched(
    ask: Callable[..., str], run: Run, edge: Path, tmp_path: Path
) -> None:
    words = ["estimate", edge, "--models-dir", tmp_path, "--json", tmp_path / "e.json"]
    ask(*words, "--model", "virnucpro-300", "--precision", "fp8")
    about = json.loads((tmp_path / "e.json").read_text())
    assert {place["device"] for place in about["elsewhere"]} == {"l40s", "h100", "h200"}
    assert {place["precision"] for place in about["elsewhere"]} == {"fp8"}
    assert about["here"]["precision"] == "fp32", "the CPU has no fp8"
    assert run(*words, "--model", "virnucpro-301")[0] == 2
    (tmp_path / "virnucpro-300").mkdir()
    (tmp_path / "virnucpro-300/model.json").write_text("{}")
    assert run(*words, "--model", "virnucpro-300")[0] == 3, "a damaged one is told as such"


def test_estimate_of_no_fasta_is_refused_as_a_run_would(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.fa").write_text(">p\nMKLVEEL\n")
    code, _, err = run("estimate", tmp_path / "p.fa", "--model", "mini")
    assert (code, "this looks like protein" in err) == (2, True)
    code, _, err = run(
        "estimate", tmp_path / "p.fa", "--model", "mini", "--json", tmp_path / "p.fa"
    )
    assert code == 2
    assert (tmp_path / "p.fa").read_text() == ">p\nMKLVEEL\n"


def test_same_lines_open_a_run(
    model: list[object], three: Path, tmp_path: Path, ask: Callable[..., str]
) -> None:
    words = ["estimate", three, *model, "--device", "cpu", "--device-class", "none"]
    said = ask(*words, "--output", tmp_path / "out").splitlines()
    log = ask("predict", three, "--output", tmp_path / "out", *model, "--device", "cpu")
    logged = [line.split(": ", 1) for line in log.splitlines()]
    opening = [text for name, text in logged if name == "virnucpro.predict"]
    assert opening[:2] == said[:2]
    assert opening[2].partition(";")[0] == said[2].partition(";")[0]
    names = [name for name, _ in logged]
    assert names.index("virnucpro.predict") < names.index("virnucpro.embed")


def test_cpu_is_measured_for_much_work_of_a_small_model_alone(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    much, little = WORK._replace(tokens=50_000_000), WORK._replace(tokens=1000)
    measured: list[str] = []
    small = sizes_of(tiny)

    def rate(_: Model, precision: str) -> float:
        measured.append(precision)
        return 1e5

    monkeypatch.setattr(estimated, "cpu_tokens_a_second", rate)
    seconds = estimate(much, small, CPU, tmp_path, precision="bf16").here.seconds
    assert seconds == pytest.approx(500, rel=0.02)
    estimate(little, small, CPU, tmp_path)
    estimate(much, PUBLISHED, CPU, tmp_path)
    monkeypatch.setattr(estimated, "PROBED", 10.0)
    estimate(much, small, CPU, tmp_path)
    assert measured == ["bf16"]


def test_load_of_the_machine_is_told_where_it_counts(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr(estimated, "cores", lambda: 4)
    monkeypatch.setattr(estimated, "cpu_seconds", lambda *_: 97.0 - WORK.bases / 3e6)

    def said(load: float) -> str:
        monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
        return str(estimate(WORK._replace(tokens=9), sizes_of(tiny), CPU, tmp_path).here)

    assert said(0.2).startswith("4 CPU cores in fp32: about 100 seconds; ")
    assert "about 100 seconds, about 5 minutes as busy as the cores are now;" in said(8)
    monkeypatch.setattr(estimated, "cpu_seconds", lambda *_: 1e6)
    assert "about 12 days;" in said(8), "the load of now says nothing of then"


def test_probe_embeds_at_a_rate(tiny: Model) -> None:
    assert 1e3 < estimated.cpu_tokens_a_second(tiny, "fp32") < 1e9


def test_sizes_are_read_off_the_weights() -> None:
    mini = sizes_of(resolve_model("mini"))
    assert (mini.window, mini.dim) == (500, 320)
    assert mini.parameters == pytest.approx(PARAMETERS["mini"], rel=0.05)
    assert mini.runs == (resolve_model("mini").rule is not None)


def test_h100_is_as_fast_as_it_was_measured(data: Path) -> None:
    benchmarks = data.parents[1] / "docs" / "benchmarks"
    about = json.loads((benchmarks / "two-h100.json").read_text())
    tokens = WORK.tokens * about["frames"] / WORK.frames  # the gut sample many times over
    for seen in about["runs"]:
        gpus = len(seen["devices"].split(","))
        seconds = tokens / (gpus * tokens_a_second("h100", 2.96e9))
        assert seconds == pytest.approx(seen["work"], rel=0.1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("Tesla T4", "t4"),
        ("NVIDIA T400", None),
        ("NVIDIA GH200 480GB", "h200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_class_of_a_gpu_by_its_name(name: str, kind: str | None) -> None:
    assert device_class(name) == kind


def test_gpus_here_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=int(8e10))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: seen)
    much = WORK._replace(tokens=10**10)
    one = estimate(much, PUBLISHED, [torch.device("cuda:0")], tmp_path).here
    two = estimate(much, PUBLISHED, [torch.device(f"cuda:{n}") for n in (0, 1)], tmp_path).here
    assert one.seconds is not None
    assert two.seconds == pytest.approx(one.seconds / 2, rel=0.01)
    assert str(two).startswith("2 × NVIDIA H100 80GB HBM3 in fp16: about 14 hours; 9.1 GB of 80 GB")
    seen.name = "NVIDIA GeForce RTX 4090"
    unknown = estimate(much, PUBLISHED, [torch.device("cuda:0")], tmp_path).here
    assert "it is not known how long" in str(unknown)


def test_readme_says_of_a_gigabase_what_estimate_says(tmp_path: Path) -> None:
    scale = 1e9 / WORK.bases
    contigs, bases, windows, frames, tokens = (round(scale * count) for count in WORK[:-1])
    work = Amount(contigs, bases, windows, frames, tokens, exact=True)
    gpus = [on_gpu(work, PUBLISHED, kind, "fp16") for kind in ("t4", "a100", "h100")]
    told = estimate(work, PUBLISHED, CPU, tmp_path)
    assert told.here.seconds
    t4, a100, h100 = (gpu.seconds or 0.0 for gpu in gpus)
    times = (
        f"{told.here.seconds * cores() / 8 / 86400:.0f} days | {t4 / 3600:.0f} hours | "
        f"{a100 / 3600:.1f} hours | {h100 / 60:.0f} minutes"
    )
    memory = f"{gpus[0].memory / 1e9:.0f} GB of the GPU, or {told.here.memory / 1e9:.0f} GB"
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert f"| `virnucpro-500` | {times} | {memory} |" in readme
    assert (
        f"a run {told.peak / 1e9:.0f} GB for 1 Gb, of which {told.results / 1e9:.0f} GB" in readme
    )
