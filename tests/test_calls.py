"""Frames → windows → contigs, and the files that say so."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from sample import FASTA, OPEN, STOPS, WEIGHTS, Sample, contents, viral

from virnucpro_core.embedding.merge import merge
from virnucpro_core.embedding.shards import seal
from virnucpro_core.errors import InputError, ModelError
from virnucpro_core.models.rule import FEATURES
from virnucpro_core.results import classify as stage
from virnucpro_core.results import tables
from virnucpro_core.results.calls import WindowCalls
from virnucpro_core.results.contigs import EVIDENCE, contig_rows, decide
from virnucpro_core.results.criteria import Criteria


def test_every_contig_is_called_once_in_input_order(sample: Sample) -> None:
    table = sample.classify()
    assert table["contig"].to_pylist() == [
        line[1:].split()[0] for line in FASTA.splitlines() if line[0] == ">"
    ]
    assert list(zip(table["call"].to_pylist(), table["reason"].to_pylist(), strict=True)) == [
        ("virus", None),
        ("other", None),
        ("virus", None),
        ("virus", None),
        ("no_call", "no_stop_free_frame"),
        ("no_call", "too_short"),
        ("no_call", "ambiguous"),
        ("no_call", "ambiguous"),
        ("no_call", "ambiguous"),
        ("virus", None),
    ]
    assert len(sample.frames) > 3


def test_summary_says_what_was_split_and_how_long_the_stages_before_took_in_all(
    sample: Sample,
) -> None:
    on = {"device": "CPU", "precision": "fp32", "peak_bytes": 1}
    for shard in sample.shards:
        with h5py.File(shard) as file:
            sums = file["checksum"][()]
        seal(shard, sums, [{**on, "seconds": 40.0}])
    sample.classify()
    summary = json.loads((sample.folder / "out/summary.json").read_text())
    (ran,) = summary["ran"]
    assert [*ran["seconds"]] == ["embed", "classify"]
    assert ran["seconds"]["embed"] == 40 * len(sample.shards) > 100
    (used,) = summary["embedded_on"]
    assert [one["name"] for one in summary["fasta"]] == ["in.fa"]
    assert {one["name"] for one in summary["input"]} <= {path.name for path in sample.frames}
    assert (used["tasks"], used["seconds"]) == (len(sample.shards), ran["seconds"]["embed"])


def test_contigs_tsv_says_what_the_table_says(sample: Sample) -> None:
    sample.classify()
    header, first, *_ = (sample.folder / "out/contigs.tsv").read_text().splitlines()
    assert header == (
        "contig\tlength\twindows\tscored_windows\tframes\tevidence_bp\tviral_windows\t"
        "viral_fraction\tmax_virus_score\tmean_virus_score\tscore\tprobability\tfdr\tregions\t"
        "call\treason"
    )
    assert first == "v1\t90\t3\t3\t18\t90\t3\t1.0\t0.8808\t0.8808\t1.0\t\t\t1\tvirus\t"
    half, stops = sample.rows("contigs.tsv")[3:5]
    assert (half["windows"], half["viral_windows"], half["viral_fraction"]) == ("2", "1", "1.0")
    assert [*stops.values()][:10] == ["stops", "60", "2", "0", "0", "0", "0", "", "", ""]
    assert (stops["call"], stops["reason"]) == ("no_call", "no_stop_free_frame")


def test_calls_do_not_depend_on_where_a_tables_row_groups_end(sample: Sample) -> None:
    expected = sample.classify()
    for path in sample.frames:
        table, about = pq.read_table(path), pq.read_metadata(path).metadata
        # columns of this type are read no further than to the end of a group
        table = table.set_column(1, "contig", table["contig"].dictionary_encode())
        with pq.ParquetWriter(path, table.schema) as writer:
            for at, rows in ((0, 2), (2, 3), (5, len(table))):
                writer.write_table(table.slice(at, rows))
            writer.add_key_value_metadata({key: about[key] for key in about if key[:1] == b"v"})
    assert sample.classify().equals(expected)


def test_windows_tsv_has_every_window_of_every_contig(sample: Sample) -> None:
    sample.classify()
    rows = sample.rows("windows.tsv")
    header = "window_id contig window start end frames score_other score_virus call"
    assert " ".join(rows[0]) == header
    table = sample.classify()
    assert len(rows) == sum(table["windows"].to_pylist())
    by_id = {row["window_id"]: row for row in rows}
    assert len(by_id) == len(rows)
    assert [*by_id["v_half_chunk_2"].values()][2:] == ["2", "30", "60", "0", "", "", "no_call"]
    assert [*by_id["v1_chunk_3"].values()][1:6] == ["v1", "3", "60", "90", "6"]
    assert by_id["t1_chunk_1"]["call"] == "virus"
    assert by_id["other|1_chunk_1"]["call"] == "other"
    assert by_id["short_chunk_1"]["end"] == "2"


def test_the_frame_table_gains_scores_and_calls(sample: Sample) -> None:
    sample.classify()
    scored = pq.read_table(sample.folder / "out/frames.parquet")
    frames = pa.concat_tables([pq.read_table(path) for path in sample.frames])
    assert scored.select(frames.column_names).equals(frames.replace_schema_metadata(None))
    assert scored.schema.field("score_other").type == pa.float32()
    assert scored.schema.field("score_virus").type == pa.float32()
    sums = np.add(scored["score_other"].to_numpy(), scored["score_virus"].to_numpy())
    np.testing.assert_allclose(sums, 1, atol=1e-6)
    calls = dict(zip(scored["contig"].to_pylist(), scored["call"].to_pylist(), strict=True))
    assert (calls["v1"], calls["other|1"], calls["t1"]) == ("virus", "other", "other")
    lines = (sample.folder / "out/prediction_results.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines[1:]] == frames["frame_id"].to_pylist()
    highest = (sample.folder / "out/prediction_results_highestscore.csv").read_text()
    assert highest.splitlines()[1:3] == ["other|1_chunk_1\tFalse", "t1_chunk_1\tTrue"]
    assert highest.splitlines()[3] == '"v""quoted""_chunk_1"\tTrue'


def test_viral_contigs_keep_header_and_sequence(sample: Sample) -> None:
    sample.classify()
    packed = (sample.folder / "out/viral.fasta.gz").read_bytes()
    assert gzip.decompress(packed).decode() == (
        f">v1 a phage, perhaps\n{OPEN * 3}\n>t1\n{OPEN}\n"
        f'>v_half with two blanks\n{OPEN}{STOPS}\n>v"quoted"\n{OPEN}\n'
    )
    sample.classify("again")
    assert (sample.folder / "again/viral.fasta.gz").read_bytes() == packed


def test_summary_counts(sample: Sample) -> None:
    sample.classify(sample="S1")
    summary = json.loads((sample.folder / "out/summary.json").read_text())
    assert summary["sample"] == "S1"
    assert summary["weights"] == WEIGHTS
    assert (summary["model"], summary["window"], summary["precision"]) == ("tiny", 30, "fp32")
    assert summary["contigs"] == {"total": 10, "virus": 4, "other": 1, "no_call": 5}
    reasons = {"too_short": 1, "ambiguous": 3, "no_stop_free_frame": 1, "little_evidence": 0}
    assert summary["no_call"] == reasons
    assert summary["regions"] == {"total": 4, "provirus": 0}
    assert summary["windows"] == {"total": 16, "called": 7, "virus": 6}
    assert summary["frames"] == {"total": 42, "virus": 30}
    total = sum(len(line) for line in FASTA.splitlines() if line[0] != ">")
    assert summary["bases"] == {"total": total, "virus": 210}
    assert not list((sample.folder / "out").glob(".*"))


def test_the_order_of_tables_and_of_merged_pieces_does_not_matter(sample: Sample) -> None:
    want = sample.classify("want", sample="x")
    turned = sample.folder / "turned.h5"
    for copy in (False, True):
        merge(sample.shards, sample.frames[::-1], turned, copy=copy)
        shuffled = sample.frames[2:] + sample.frames[:2]
        got = sample.classify("got", sample="x", embeddings=turned, frames=shuffled)
        assert got.equals(want)
        assert contents(sample.folder / "got") == contents(sample.folder / "want")


def test_small_batches_change_nothing(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    want = sample.classify("want")
    monkeypatch.setattr(stage, "CHUNK_ROWS", 5)
    monkeypatch.setattr(tables, "BATCH_ROWS", 2)
    for rows in (1, 3):

        def small(path: Path, columns: Any = None, rows: int = rows) -> Any:
            return pq.ParquetFile(path).iter_batches(batch_size=rows, columns=columns)

        monkeypatch.setattr(stage, "inventory_batches", small)
        assert sample.classify("got").combine_chunks().equals(want.combine_chunks())
    for name in ("windows.tsv", "contigs.tsv", "prediction_results.txt", "viral.fasta.gz"):
        assert (sample.folder / "got" / name).read_bytes() == (
            sample.folder / "want" / name
        ).read_bytes()


def test_least_share_of_viral_windows_decides_at_the_boundary(tmp_path: Path) -> None:
    def first_of_three(frame_id: str) -> tuple[float, float]:
        return (0.0, 1.0) if "chunk_1" in frame_id else (1.0, 0.0)

    sample = Sample(tmp_path, f">a\n{OPEN * 3}\n", first_of_three)
    for fraction, call in ((0.3, "virus"), (0.3333, "virus"), (0.34, "other"), (1.0, "other")):
        table = sample.classify(min_score=fraction)
        assert table["call"].to_pylist() == [call], fraction
    row = sample.rows("contigs.tsv")[0]
    assert (row["viral_windows"], row["viral_fraction"]) == ("1", "0.3333")
    assert (row["max_virus_score"], row["mean_virus_score"]) == ("0.7311", "0.423")
    for wrong in (0, -1, 1.5, float("nan")):
        with pytest.raises(InputError, match="min-score"):
            sample.classify(min_score=wrong)


def test_a_sample_without_any_frame_is_all_no_call(tmp_path: Path) -> None:
    sample = Sample(tmp_path, ">a\nAC\n>b\nNNNN\n>c\nNNN\n", viral)
    table = sample.classify()
    assert table["call"].to_pylist() == ["no_call"] * 3
    assert table["reason"].to_pylist() == ["too_short", "ambiguous", "ambiguous"]
    assert gzip.decompress((tmp_path / "out/viral.fasta.gz").read_bytes()) == b""
    assert pq.read_table(tmp_path / "out/frames.parquet").num_rows == 0


def test_a_window_takes_its_best_scores_from_any_of_its_frames() -> None:
    calls = WindowCalls.of(np.array([0, 30, 45]), 30)
    assert calls.contig.tolist() == [1, 2, 2]
    contig, number = np.array([2, 2, 1]), np.array([2, 2, 1])
    scores = np.array([[0.9, 0.1], [0.05, 0.95], [0.7, 0.3]], np.float32)
    calls.add(contig, number, scores, np.zeros(3, np.bool_))
    assert calls.is_virus.tolist() == [False, False, True]
    assert calls.called.tolist() == [True, False, True]
    pairs = np.array([(1, 2), (2, 2), (0, 1), (1, 0), (2, 3)])  # of contig and number
    assert calls.misplaced(*pairs.T).tolist() == [True, False, True, True, True]
    batch = pa.record_batch(
        {"contig": ["e", "a", "b"], "length": [0, 30, 45], "sequence": ["", OPEN, OPEN * 2]}
    )
    evidence = pa.Table.from_batches([contig_rows(batch, calls, None)], EVIDENCE)
    rows = decide(evidence, [], Criteria(None, 0.5, None, 0, 0, None), None)[0].to_pylist()
    assert [row["call"] for row in rows] == ["no_call", "other", "virus"]
    assert rows[0]["reason"] == "too_short"
    assert (rows[2]["windows"], rows[2]["frames"], rows[2]["viral_fraction"]) == (2, 2, 1.0)


def test_log_odds_of_a_window_are_the_middle_of_its_greatest_and_its_least() -> None:
    calls = WindowCalls.of(np.array([900]), 300)
    scores = np.array([[0.4, 0.6], [0.1, 0.9], [0, 1]], np.float32)
    calls.add(np.zeros(3, np.int64), np.array([1, 1, 2]), scores, np.zeros(3, np.bool_))
    logit = np.log([0.9 / 0.1, 0.4 / 0.6])
    expected = [(logit[0] - logit[1]) / 2, np.log(1e9)]  # no score is past every doubt
    assert calls.odds[:2] == pytest.approx(expected, rel=1e-5)
    assert calls.called.tolist() == [True, True, False]


def test_a_window_of_one_frame_and_one_read_by_its_longest_run_are_features_apart() -> None:
    calls = WindowCalls.of(np.array([60]), 30)
    scores = np.array([[0.2, 0.8], [0.4, 0.6]], np.float32)
    calls.add(np.zeros(2, np.int64), np.array([1, 2]), scores, np.array([False, True]))
    found = dict(zip(FEATURES, calls.features()[0].tolist(), strict=True))
    expected = {"frames": np.log(4) / 2, "runs": np.log(1.5) / 2, "share": 0.5}
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_windows_that_a_contig_does_not_have_are_misplaced() -> None:
    calls = WindowCalls.of(np.array([90, 60, 30]), 30)
    contig, number = np.array([0, 0, 0, 1, 1, 2, 2, 2]), np.array([0, 3, 4, 2, 3, -1, 1, 2])
    misplaced = [True, False, True, False, True, True, False, True]
    assert calls.misplaced(contig, number).tolist() == misplaced


def test_scores_of_a_classifier_that_are_not_finite_are_the_model_s_fault(tmp_path: Path) -> None:
    sample = Sample(tmp_path, FASTA, lambda _: (1e38, 1e38))
    state = load_file(sample.model.classifier)
    save_file(
        {**state, "output_layer.weight": 9 * state["output_layer.weight"]}, sample.model.classifier
    )
    with pytest.raises(ModelError, match="the classifier gives scores that are not finite; import"):
        sample.classify()
    assert not (tmp_path / "out").exists()
