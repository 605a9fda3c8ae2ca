"""Validating a precision, keeping what was passed, and refusing what was not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_cli import assert_refused, virnucpro
from tiny import WINDOW, write_tiny_model

import virnucpro_core as vnp
from virnucpro_core.errors import InputError, VirNucProError
from virnucpro_core.lab.validate import sample_frames, validate
from virnucpro_core.models.esm2 import ESM2
from virnucpro_core.models.float8 import Float8Linear
from virnucpro_core.models.gate import BARS, LEAST_FRAMES, STORED, passed, require
from virnucpro_core.models.precision import check_precision
from virnucpro_core.models.store import Model, resolve_model
from virnucpro_core.sequences.translate import translate

CPU = torch.device("cpu")
PHAGES = Path(__file__).parents[1] / "assets/demo/phages.fasta"


@pytest.fixture
def own(tmp_path: Path) -> Model:
    """A tiny model of the test's own."""
    return write_tiny_model(tmp_path / "models")


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if bf16 needed a validation, which fp8 does where there is a GPU for it."""
    monkeypatch.setattr("virnucpro_core.models.gate.NEEDED", ("bf16",))


def test_sample_is_spread_over_lengths_and_contigs(edge_frames: Path) -> None:
    table = pq.read_table(edge_frames)
    whole, some = sample_frames(edge_frames, 10_000), sample_frames(edge_frames, 20)
    assert whole["frame_id"].to_pylist() == table["frame_id"].to_pylist()
    assert some.num_rows == 20
    assert sample_frames(edge_frames, 20) == some
    lengths = [np.array([len(p) for p in t["protein"].to_pylist()]) for t in (whole, some)]
    for share in (0, 0.25, 0.5, 0.75, 1):
        assert abs(np.quantile(lengths[0], share) - np.quantile(lengths[1], share)) <= 10
    assert len({name.split("_chunk")[0] for name in some["frame_id"].to_pylist()}) >= 8
    assert sample_frames(edge_frames, 1).num_rows == 1


def test_validate_same_precision_differs_in_nothing(own: Model, edge_frames: Path) -> None:
    outcome = validate(edge_frames, own, "fp32", device=CPU, sample=30)
    assert outcome.frames == 30
    assert outcome.agreement == 1
    for figures in outcome.encoders.values():
        assert figures["largest_difference"] == figures["relative_difference"] == 0
        assert abs(figures["least_cosine"] - 1) < 1e-12


def test_validate_figures_are_those_of_the_embeddings(own: Model, edge_frames: Path) -> None:
    outcome = validate(edge_frames, own, "bf16", device=CPU, sample=10_000)
    table = pq.read_table(edge_frames)
    for name, encoder, column in (
        ("DNABERT-S", vnp.load_dnabert_s(own.nucleotide), "nucleotide"),
        ("ESM-2", vnp.load_esm2(own.protein), "protein"),
    ):
        texts = table[column].to_pylist()
        expected, found = encoder.embed(texts), encoder.embed(texts, precision="bf16")
        off = found - expected  # other batches: bf16 rounds them otherwise
        figures = outcome.encoders[name]
        assert figures["largest_difference"] == pytest.approx(np.abs(off).max(), rel=0.2)
        relative = np.linalg.norm(off) / np.linalg.norm(expected)
        assert figures["relative_difference"] == pytest.approx(relative, rel=1e-2)
        assert 0.99 < figures["least_cosine"] < figures["mean_cosine"] < 1


def test_validate_flipped_calls_are_listed_with_their_margin(
    own: Model, edge_frames: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = iter(
        torch.tensor([[0.0, virus] for virus in scores] + [[0.0, 5.0]] * 7)
        for scores in ([0.1, -0.4, 0.2], [-0.1, 0.4, 0.3])
    )
    monkeypatch.setattr(
        "virnucpro_core.lab.validate.load_classifier", lambda _: lambda _: next(logits)
    )
    outcome = validate(edge_frames, own, "bf16", device=CPU, sample=10)
    ids = sample_frames(edge_frames, 10)["frame_id"].to_pylist()
    assert [flip["frame_id"] for flip in outcome.flips] == [ids[1], ids[0]]
    assert [flip["margin"] for flip in outcome.flips] == pytest.approx([0.0987, 0.0250], abs=1e-4)
    assert outcome.agreement == 0.8
    assert "agreement of calls 0.800000 < 0.999" in outcome.misses
    assert f"{ids[1]}: virus score 0.4013 became 0.5987, margin 0.0987" in str(outcome)
    assert not passed(own, "bf16")


@pytest.mark.usefixtures("halves")
def test_validation_passed_is_kept_and_honoured_until_weights_change(
    own: Model, edge_frames: Path
) -> None:
    with pytest.raises(InputError, match="tiny has no passed validation in bf16 for its weights"):
        require(own, "bf16", [CPU])
    require(own, "bf16", [CPU], force=True)
    require(own, "fp16", [CPU])
    assert not validate(edge_frames, own, "bf16", device=CPU, sample=LEAST_FRAMES).misses
    assert passed(own, "bf16")
    assert not passed(own, "fp16")
    require(own, "bf16", [CPU])
    record = json.loads((own.folder / STORED).read_text())["bf16"]
    assert record["weights"] == own.weights
    assert {"encoders", "machine", "date", "bars", "frames"} <= record.keys()

    write_tiny_model(own.folder.parent, seed=1)
    changed = resolve_model("tiny", own.folder.parent)
    assert (changed.folder / STORED).exists()
    with pytest.raises(InputError, match="virnucpro validate` with --precision bf16"):
        require(changed, "bf16", [CPU])


def test_validation_failed_undoes_one_that_was_passed(
    own: Model, edge_frames: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate(edge_frames, own, "fp16", device=CPU, sample=LEAST_FRAMES)
    validate(edge_frames, own, "bf16", device=CPU, against="bf16", sample=LEAST_FRAMES)
    assert passed(own, "fp16")
    assert not passed(own, "bf16"), "nothing is known from bf16 against itself"
    validate(edge_frames, own, "fp16", device=CPU, min_cosine=1, sample=LEAST_FRAMES)
    assert passed(own, "fp16"), "a bar of the user's own closes no gate"
    calls = iter([np.ones(LEAST_FRAMES, bool), np.zeros(LEAST_FRAMES, bool)])
    monkeypatch.setattr("virnucpro_core.lab.validate.frame_is_virus", lambda _: next(calls))
    validate(edge_frames, own, "fp16", device=CPU, sample=LEAST_FRAMES)
    assert not passed(own, "fp16")


@pytest.mark.parametrize(
    ("sample", "min_cosine"), [(1, 0.999), (LEAST_FRAMES - 1, 0.999), (1, -1.0)]
)
def test_validation_of_too_few_frames_opens_no_gate(
    own: Model,
    edge_frames: Path,
    sample: int,
    min_cosine: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    outcome = validate(edge_frames, own, "fp16", device=CPU, sample=sample, min_cosine=min_cosine)
    assert not outcome.misses
    assert not passed(own, "fp16")
    assert "too few to go by" in caplog.text


def test_validation_below_the_default_bars_opens_no_gate(
    own: Model, edge_frames: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder's weights in bf16 are scrambled: bars of -1 and 0 are passed, and nothing won."""
    load = vnp.load_esm2

    def scrambled(path: Path, **options: Any) -> ESM2:
        encoder = load(path, **options)
        if options["dtype"] == torch.bfloat16:
            encoder.norm.bias.data += torch.randn_like(encoder.norm.bias)
        return encoder

    monkeypatch.setattr("virnucpro_core.embedding.encoders.load_esm2", scrambled)
    outcome = validate(
        edge_frames, own, "bf16", device=CPU, sample=200, min_agreement=0, min_cosine=-1
    )
    assert not outcome.misses
    assert not passed(own, "bf16")


def test_validate_of_a_shipped_model_writes_nothing_into_the_package(
    edge: Path, tmp_path: Path
) -> None:
    translate([edge, PHAGES], tmp_path / "frames.parquet", 500)
    folder = resolve_model("mini").folder
    before = {path.name for path in folder.iterdir()}
    words = ["validate", tmp_path / "frames.parquet", "--model", "mini", "--precision", "bf16"]
    run = virnucpro(*words, "--device", "cpu", "--sample", LEAST_FRAMES)
    assert run.returncode == 0, run.stderr
    assert "the folder of the package), so this validation is not kept" in run.stderr
    assert {path.name for path in folder.iterdir()} == before


@pytest.mark.parametrize("text", ["", "[]", '{"fp8": 1}', '{"fp8": {"passed": true}}'])
def test_validation_damaged_is_none(own: Model, text: str) -> None:
    (own.folder / STORED).write_text(text)
    assert not passed(own, "fp8")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"agreement": BARS["agreement"] - 1e-9}, False),
        ({"encoders": {"ESM-2": {"least_cosine": BARS["cosine"] - 1e-9}}}, False),
        ({"agreement": None}, False),
        ({"encoders": {}}, False),
        ({"encoders": {"ESM-2": {}}}, False),
        ({"frames": LEAST_FRAMES - 1}, False),
    ],
)
def test_validation_opens_the_gate_at_its_very_bars(
    own: Model, change: dict[str, Any], expected: bool
) -> None:
    record = {"weights": own.weights, "frames": LEAST_FRAMES, "agreement": BARS["agreement"]}
    record["encoders"] = {"ESM-2": {"least_cosine": BARS["cosine"]}}
    (own.folder / STORED).write_text(json.dumps({"fp8": record | change}))
    assert passed(own, "fp8") is expected


def test_validation_in_a_folder_that_cannot_be_written_is_said(
    own: Model, edge_frames: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("virnucpro_core.lab.validate.written_aside", refuse)
    assert not validate(edge_frames, own, "fp16", device=CPU, sample=LEAST_FRAMES).misses
    assert "cannot be written (Permission denied)" in caplog.text
    assert "--models-dir" in caplog.text
    assert not passed(own, "fp16")


def test_validate_table_of_another_window_or_without_frames_is_refused(
    own: Model, edge: Path, tmp_path: Path
) -> None:
    translate([edge], tmp_path / "other.parquet", 500)
    (tmp_path / "short.fa").write_text(">short\nAC\n")
    translate([tmp_path / "short.fa"], tmp_path / "none.parquet", WINDOW)
    for name in ("other", "none"):
        with pytest.raises(InputError, match=r"tiny needs some, of windows of 300"):
            validate(tmp_path / f"{name}.parquet", own, "bf16", device=CPU)


def test_validate_values_that_are_not_finite_are_refused(own: Model, edge_frames: Path) -> None:
    def broken(path: Path, **options: Any) -> ESM2:
        encoder = vnp.load_esm2(path, **options)
        encoder.norm.bias.data[0] = 1e5 * encoder.norm.weight.new_ones(())  # infinite in fp16
        return encoder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("virnucpro_core.embedding.encoders.load_esm2", broken)
        with pytest.raises(VirNucProError, match="tiny in fp16 gives values that are not finite"):
            validate(edge_frames, own, "fp16", device=CPU, sample=5)


def test_cli_validate_mini_passes_and_fails_an_impossible_bar(tmp_path: Path, edge: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(resolve_model("mini").folder, models / "mini")
    (models / "mini" / STORED).unlink(missing_ok=True)
    translate([edge, PHAGES], tmp_path / "frames.parquet", 500)
    command = ["validate", tmp_path / "frames.parquet", "--model", "mini", "--models-dir", models]
    command += ["--precision", "bf16", "--device", "cpu", "--sample", 120]
    run = virnucpro(*command, "--against", "fp32", "--json", tmp_path / "figures.json")
    assert run.returncode == 0, run.stderr
    assert "mini in bf16 against fp32, 120 frames" in run.stdout
    assert "calls: 100.0000% agree, 0 flipped" in run.stdout
    record = json.loads((tmp_path / "figures.json").read_text())
    assert record["passed"]
    assert record["encoders"]["ESM-2"]["least_cosine"] > 0.999
    assert json.loads((models / "mini" / STORED).read_text()) == {"bf16": record}

    run = virnucpro(*command, "--min-cosine", "1", "--json", tmp_path / "figures.json")
    assert_refused(run, 1, r"mini in bf16 is below the bar: least cosine of DNABERT-S 0\.99")
    assert not json.loads((tmp_path / "figures.json").read_text())["passed"]


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_cli_fp8_without_a_gpu_for_it_is_refused(
    force: list[str], edge: Path, edge_frames: Path, models_dir: Path, tmp_path: Path
) -> None:
    model = ["--model", "tiny", "--models-dir", models_dir, "--precision", "fp8", *force]
    for command in (["embed", edge_frames], ["predict", edge]):
        run = virnucpro(*command, "-o", tmp_path / "out", *model, "--device", "cpu")
        assert_refused(run, 2, r"fp8 needs a GPU of compute capability 8\.9")


def test_fp8_is_refused_without_a_validation(
    own: Model, edge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virnucpro_core.models.precision.has_fp8", lambda _: True)
    with pytest.raises(InputError, match="tiny has no passed validation in fp8"):
        vnp.predict(edge, "tiny", models_dir=own.folder.parent, devices="cpu", precision="fp8")


@pytest.mark.usefixtures("halves")
def test_predict_without_a_validation_is_refused_at_once_unless_forced(
    own: Model, edge: Path
) -> None:
    asked: dict[str, Any] = {"models_dir": own.folder.parent, "devices": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr("virnucpro_core.one_process.identify")  # what comes first of all work
        with pytest.raises(InputError, match="tiny has no passed validation in bf16"):
            vnp.predict(edge, "tiny", precision="bf16", **asked)
    assert vnp.predict(edge, "tiny", precision="bf16", force=True, **asked).num_rows == 44


def test_encoder_converts_to_fp8_and_not_back(own: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = vnp.load_esm2(own.protein)
    with pytest.raises(InputError, match=r"fp8 needs a GPU of compute capability 8\.9"):
        encoder.placed("cpu", "fp8")
    assert encoder.precision == "fp32"
    monkeypatch.setattr("virnucpro_core.models.precision.has_fp8", lambda _: True)
    assert encoder.placed("cpu", "fp8") is encoder
    assert encoder.placed("cpu", "fp8").precision == "fp8"
    assert encoder.embedding.weight.dtype == torch.bfloat16
    layers = [module for module in encoder.modules() if isinstance(module, Float8Linear)]
    assert len(layers) == 5, "the first layer looks its queries, keys and values up"
    assert all(layer.weight.dtype == torch.float8_e4m3fn for layer in layers)
    with pytest.raises(InputError, match="load it again"):
        encoder.embed(["MK"], precision="fp32")
    assert vnp.load_dnabert_s(own.nucleotide).placed("cpu", "fp8").precision == "bf16"


def test_to_fp8_leaves_the_first_layers_that_it_is_told() -> None:
    model = ESM2(4, 32, 2).bfloat16().to_fp8((2, 1))
    quantized = [
        [name for name, module in layer.named_children() if isinstance(module, Float8Linear)]
        for layer in model.layers
    ]
    assert quantized == [[], ["up", "down"], ["qkv", "up", "down"], ["qkv", "up", "down"]]


def test_check_precision_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="'fp4' is not known; choose one of fp32, bf16, fp16, fp8"):
        check_precision("fp4", CPU)
