"""What does not belong together is refused by `classify`, and leaves no results."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file
from sample import OPEN, WEIGHTS, Sample, viral

from virnucpro_core.embedding.hdf5 import data_places, sign
from virnucpro_core.embedding.merge import merge
from virnucpro_core.errors import InputError, ModelError
from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.sequences.translate import translate


def refused(
    sample: Sample, mentions: str, kind: type[Exception] = InputError, **options: Any
) -> None:
    with pytest.raises(kind, match=mentions):
        sample.classify(**options)
    assert not list(sample.folder.glob("out/*")), "a refusal left files"


def test_frames_that_are_missing_foreign_or_doubled_are_refused(
    sample: Sample, tmp_path: Path
) -> None:
    refused(sample, "were not given", frames=sample.frames[1:])
    refused(sample, "given before", frames=[*sample.frames, sample.frames[0]])
    (tmp_path / "else").mkdir()
    other = Sample(tmp_path / "else", f">x\n{OPEN}\n", viral)
    refused(sample, "no embeddings of these frames", frames=[*sample.frames, *other.frames])
    refused(sample, "'v1' is not in this inventory", contigs=other.contigs)
    refused(sample, "no such file", frames=[tmp_path / "absent.parquet"])


def test_tables_of_two_genetic_codes_are_refused(sample: Sample, tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    translate([sample.pieces[-1]], other, sample.model.window, code=15)
    refused(sample, "genetic code 15, and .* with 1; ", frames=[*sample.frames[:-1], other])


def test_tables_of_two_samples_whose_contigs_have_one_name_are_refused(
    sample: Sample, tmp_path: Path
) -> None:
    (tmp_path / "else").mkdir()
    other = Sample(tmp_path / "else", f">v1\n{OPEN}\n", viral)
    frames = [*sample.frames, *other.frames]
    merge([*sample.shards, *other.shards], frames, sample.embeddings)
    refused(sample, "begins with contig 'v1', as .* does", frames=frames)


def test_contigs_that_the_inventory_lacks_or_has_otherwise_are_refused(
    sample: Sample, tmp_path: Path
) -> None:
    inventory = pq.read_table(sample.contigs)
    for lacking in range(inventory.num_rows):
        name = inventory["contig"][lacking].as_py()
        if inventory["sequence"][lacking].as_py().startswith(OPEN):
            kept = [i for i in range(inventory.num_rows) if i != lacking]
            pq.write_table(inventory.take(kept), tmp_path / "lacks")
            refused(sample, f"'{name}' is not in this inventory", contigs=tmp_path / "lacks")
    shorter = inventory.set_column(2, "length", pa.array([30] * 10, pa.int64()))
    shorter = shorter.set_column(4, "sequence", pa.array([OPEN] * 10))
    pq.write_table(shorter, tmp_path / "shorter")
    refused(sample, "'v1' is not in this inventory", contigs=tmp_path / "shorter")


def test_embeddings_of_other_weights_are_refused_by_whatever_name(sample: Sample) -> None:
    weights = {**WEIGHTS, "dnabert_s/model.safetensors": "ef" * 32}
    for name in ("tiny", "mini"):
        model = replace(sample.model, name=name, weights=weights)
        refused(sample, "made with the model 'tiny' and other weights", model=model)
    refused(sample, "windows of 30", model=replace(sample.model, window=300))
    retrained = {**WEIGHTS, "classifier.safetensors": "ef" * 32}
    sample.classify(model=replace(sample.model, name="own", weights=retrained))


def test_a_classifier_of_another_width_is_refused(sample: Sample, tmp_path: Path) -> None:
    model = replace(sample.model, folder=tmp_path / "wide")
    model.folder.mkdir()
    save_file(MLPClassifier(3, 2).state_dict(), model.classifier)
    refused(sample, "takes embeddings of 3", ModelError, model=model)


def test_other_rows_and_values_that_are_not_finite_are_refused(sample: Sample) -> None:
    table = sample.frames[0]
    ids = pq.read_table(table)["frame_id"].to_pylist()
    values = np.ones((len(ids), 2), np.float32)
    path = sample.shard(table, values)
    with h5py.File(path, "r+") as file:
        file["frame_id"][:] = file["frame_id"][()][::-1]
        places = data_places(file)
    with path.open("rb+", buffering=0) as raw:
        sign(raw.fileno(), places)
    refused(sample, "are not the frames of")
    values[3, 1] = np.inf
    sample.shard(table, values)
    refused(sample, f"{ids[3]} is not finite")


def test_a_refused_run_leaves_the_results_of_the_last_good_one(sample: Sample) -> None:
    sample.classify()
    before = {p: hashlib.sha256(p.read_bytes()).digest() for p in (sample.folder / "out").iterdir()}
    table = sample.frames[-1]
    rows = pq.read_metadata(table).num_rows
    sample.shard(table, np.full((rows, 2), np.nan, np.float32))
    with pytest.raises(InputError):
        sample.classify()
    after = {p: hashlib.sha256(p.read_bytes()).digest() for p in (sample.folder / "out").iterdir()}
    assert after == before
