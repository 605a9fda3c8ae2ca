"""What each half of the classifier's input says alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sample import FASTA, Sample, contents, viral
from tiny import write_tiny_model

from virnucpro_core.embedding.shards import EmbeddingFile
from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.models.store import resolve_model
from virnucpro_core.results.again import call_again
from virnucpro_core.results.halves import Halves, hidden_halves
from virnucpro_core.results.kept import MADE
from virnucpro_core.schema import HALVES


def scored(sample: Sample) -> pa.Table:
    sample.classify()
    return pq.read_table(sample.folder / "out/frames.parquet")


def test_halves_are_the_classifier_s_scores_with_the_other_half_replaced() -> None:
    torch.manual_seed(1)
    classifier = MLPClassifier(7, 5).eval().requires_grad_(False)
    classifier.bn1.running_mean = torch.randn(5)
    rng = np.random.default_rng(1)
    given, hidden = rng.normal(size=(20, 7)).astype(np.float32), rng.normal(size=7)
    scores = Halves(classifier, 3, hidden.astype(np.float32)).scores(given)
    for half, hide in ((0, slice(3, None)), (1, slice(0, 3))):
        replaced = given.copy()
        replaced[:, hide] = hidden[hide]
        want = classifier(torch.from_numpy(replaced)).softmax(1)[:, 1].numpy()
        np.testing.assert_allclose(scores[:, half], want, atol=1e-4)


def test_what_hides_a_half_is_what_the_model_was_trained_with_or_the_mean(tmp_path: Path) -> None:
    mini = resolve_model("mini")
    width, empty = hidden_halves(mini, [])
    assert mini.hides
    assert (width, len(empty)) == (192, 320)
    assert empty[:192].any()
    assert not empty[192:].any()
    assert not write_tiny_model(tmp_path).hides
    sample = Sample(tmp_path, FASTA, viral)
    width, mean = hidden_halves(sample.model, EmbeddingFile(sample.embeddings).sources)
    assert width == 1
    rows = [viral(name) for name in scored(sample)["frame_id"].to_pylist()]
    np.testing.assert_allclose(mean, np.mean(rows, axis=0), rtol=1e-6)


def test_scores_of_halves_are_in_the_frame_table_and_are_kept(tmp_path: Path) -> None:
    sample = Sample(tmp_path, FASTA, viral)
    table = scored(sample)
    assert table.column_names[-2:] == HALVES.names
    by_name = dict(zip(*(table[n].to_pylist() for n in ("contig", "score_protein")), strict=True))
    assert by_name["v1"] > by_name["other|1"]
    before = contents(tmp_path / "out")["frames.parquet"]
    call_again(tmp_path / "out", min_score=0.2, min_evidence=0)
    assert contents(tmp_path / "out")["frames.parquet"] == before


def test_results_of_an_earlier_version_without_halves_are_called_again(tmp_path: Path) -> None:
    sample = Sample(tmp_path, FASTA, viral)
    table = scored(sample)
    path = tmp_path / "out/frames.parquet"
    said = {MADE: pq.read_metadata(path).metadata[MADE.encode()]}
    pq.write_table(table.drop_columns(HALVES.names).replace_schema_metadata(said), path)
    call_again(tmp_path / "out", min_score=0.2, min_evidence=0)
    again = pq.read_table(path)
    assert np.isnan(again["score_nucleotide"].to_numpy()).all()
    assert again["score_virus"].equals(table["score_virus"])
