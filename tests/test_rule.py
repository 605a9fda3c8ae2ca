"""A model's own rule for contigs, and windows read by their longest run of codons."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import write_tiny_model

import virnucpro_core as vnp
from virnucpro_core.embedding.engine import embed
from virnucpro_core.models.rule import FEATURES, ContigRule, features
from virnucpro_core.models.store import read_model, resolve_model
from virnucpro_core.results.classify import classify
from virnucpro_core.results.legacy import HIGHEST_SCORE, PREDICTIONS
from virnucpro_core.sequences.fasta import Contig
from virnucpro_core.sequences.frames import stop_free_frames
from virnucpro_core.sequences.split import split
from virnucpro_core.sequences.translate import translate

RULE = ContigRule((1.0, 0.5, 0.25, 0.125, 0.3, -0.1, 0.2), 0.5)
STOPS = "TAATTAATTAA"  # a stop in each of the six frames


def closed(run: str) -> str:
    """A window without a stop-free frame, in which a run stands between stops."""
    return STOPS + run + STOPS


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    texts = {"framed": "GCA" * 90, "both": "GCC" * 100 + closed("GCA" * 70)}
    texts |= {"closed": closed("".join(rng.choice(list("ACG"), 240))), "short": "AC"}
    path = tmp_path / "in.fa"
    path.write_text("".join(f">{name}\n{text}\n" for name, text in texts.items()))
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """`plain`, and `ruled`: the same weights with a rule."""
    for name in ("plain", "ruled"):
        write_tiny_model(tmp_path / "models", name)
    path = tmp_path / "models/ruled/model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "contig_rule": RULE.record()}))
    return tmp_path / "models"


def test_a_run_is_the_longest_stretch_of_codons_between_stops() -> None:
    text = closed("GCA" * 20) + "C" + "N" * 3 + "AAA" * 10
    contigs = [Contig("a", "", text.encode()), Contig("b", "", b"ACGACG")]
    plain, read = (stop_free_frames(contigs, 300, runs=runs).to_pylist() for runs in (False, True))
    assert read[1:] == plain  # whatever has frames has no run
    (run,) = read[:1]
    assert (run["frame_id"], run["window"]) == ("a_chunk_1" + run["frame"], 1)
    assert run["frame"].islower()
    strand = text if run["frame"][0] == "f" else flipped(text)
    assert run["nucleotide"] == strand
    inside = text[run["start"] : run["end"]]
    assert len(inside) == 3 * len(run["protein"]) >= 60
    assert not {"TAA", "TAG", "TGA"} & {inside[i : i + 3] for i in range(0, len(inside), 3)}


def flipped(text: str) -> str:
    return text[::-1].translate(str.maketrans("ACGT", "TGCA"))


def test_features_are_means_over_all_windows_that_were_read() -> None:
    contig, framed = np.array([0, 0, 2]), np.array([True, False, False])
    found = features(contig, np.array([4.0, 2.0, -1.0]), framed, 3)
    log = np.log(2)
    assert found[0] == pytest.approx([2, 1, 2 * log, log, 0.5, log, 1])
    assert found[2] == pytest.approx([0, -1, 0, 0, 0, 0, 1])
    assert RULE.probability(found[2:]) == pytest.approx([1 / (1 + np.exp(0.5 - 0.2))])


def test_a_window_alone_scores_as_a_contig_of_that_window_does() -> None:
    odds, framed = np.array([4.0, -3.0, 2.0]), np.array([True, False, False])
    alone = features(np.arange(3), odds, framed, 3)
    expected = np.log(1 / (1 / RULE.probability(alone) - 1))
    assert RULE.windows(odds, framed) == pytest.approx(expected)


def test_a_score_beyond_what_a_float_holds_is_certain_without_a_warning() -> None:
    far = np.array([[1e6, 0, 0, 0, 0, 0, 0], [-1e6, 0, 0, 0, 0, 0, 0]])
    with np.errstate(all="raise", under="ignore"):
        assert RULE.probability(far) == pytest.approx([1, 0])


def test_a_model_with_a_rule_calls_by_it_and_reads_windows_without_a_frame(
    fasta: Path, models: Path, tmp_path: Path
) -> None:
    plain, ruled = (
        vnp.predict(fasta, name, models_dir=models, output=tmp_path / name).to_pylist()
        for name in ("plain", "ruled")
    )
    assert [row["call"] == "no_call" for row in plain] == [False, False, True, True]
    assert [row["call"] == "no_call" for row in ruled] == [False, False, False, True]
    for name in ("plain", "ruled"):
        made = json.loads((tmp_path / name / "summary.json").read_text())
        assert made["runs"] is (name == "ruled")
    assert [row["frames"] for row in ruled] == [row["frames"] for row in plain]
    assert [row["score"] for row in plain] == [row["viral_fraction"] for row in plain]
    assert all(row["probability"] is row["fdr"] is None for row in plain)
    for row in ruled[:3]:
        assert row["call"] == ("virus" if row["score"] >= RULE.call_at else "other")
    for name in (PREDICTIONS, HIGHEST_SCORE):  # the original's files know no such windows
        before, after = (
            [line.split("\t")[:2] for line in (tmp_path / model / name).read_text().splitlines()]
            for model in ("plain", "ruled")
        )
        assert before == after
    frames = pq.read_table(tmp_path / "ruled/frames.parquet")["frame"].cast(pa.string())
    assert sum(name.islower() for name in frames.to_pylist()) == 2
    again = vnp.predict(
        fasta, "ruled", models_dir=models, output=tmp_path / "ruled", min_score=0.9
    ).to_pylist()
    for row in again[:3]:
        assert row["call"] == ("virus" if row["score"] >= 0.9 else "other")


@pytest.mark.parametrize(("name", "runs"), [("ruled", False), ("plain", True)])
def test_classify_tables_without_the_runs_that_a_rule_reads_or_with_them_are_refused(
    name: str, runs: bool, fasta: Path, models: Path, tmp_path: Path
) -> None:
    model = resolve_model(name, models)
    (piece,) = split([fasta], tmp_path)
    table, shard = tmp_path / "frames.parquet", tmp_path / "shard.h5"
    translate([piece], table, model.window, runs=runs)
    embed(table, shard, model, devices="cpu")
    with pytest.raises(vnp.InputError, match=f"translate with --model {name}, and embed again"):
        classify(shard, [table], tmp_path / "contigs.parquet", tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


def test_predict_by_a_rule_that_changed_is_not_finished_already(
    fasta: Path, models: Path, tmp_path: Path
) -> None:
    def scores() -> list[float | None]:
        table = vnp.predict(fasta, "ruled", models_dir=models, output=tmp_path / "out")
        return table["score"].to_pylist()  # type: ignore[no-any-return]

    before = scores()
    path = models / "ruled/model.json"
    about = json.loads(path.read_text())
    about["contig_rule"]["weights"]["one"] += 1.0
    path.write_text(json.dumps(about))
    assert scores() != before
    del about["contig_rule"]
    path.write_text(json.dumps(about))
    assert scores().count(None) > before.count(None), "windows without a frame are not read"


def test_a_rule_that_is_odd_is_refused(models: Path) -> None:
    path = models / "ruled/model.json"
    about = json.loads(path.read_text())
    assert read_model(path.parent).rule == RULE
    assert resolve_model("plain", models).rule is None
    weights = about["contig_rule"]["weights"]
    some_odd: tuple[object, ...] = (
        None,
        [],
        {"weights": weights},
        {"weights": {**weights, "log": "1"}, "call_at": 0.5},
        {"weights": dict.fromkeys(FEATURES[:-1], 1.0), "call_at": 0.5},
        {"weights": weights, "call_at": 1.0},
    )
    for odd in some_odd:
        path.write_text(json.dumps({**about, "contig_rule": odd}))
        with pytest.raises(vnp.ModelError, match="contig_rule"):
            read_model(path.parent)
