"""Embedding a frame table, on through kills."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from tiny import WINDOW, repeated_frames, write_tiny_model

import virnucpro_core as vnp
from virnucpro_core.embedding import engine
from virnucpro_core.embedding.engine import embed
from virnucpro_core.embedding.merge import merge
from virnucpro_core.embedding.shards import EmbeddingFile
from virnucpro_core.errors import BusyError, InputError, StoppedError, VirNucProError
from virnucpro_core.models.store import Model
from virnucpro_core.sequences.translate import translate

CPU = "cpu"


def read(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    parts = list(EmbeddingFile(path).parts())
    names = [name for ids, _ in parts for name in ids]
    empty = np.empty((0, EmbeddingFile(path).dim), np.float32)
    return names, np.concatenate([empty, *(values for _, values in parts)])


def run_embed(frames: Path, output: Path, models_dir: Path, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "virnucpro_core.cli", "embed", str(frames), "-o", str(output)]
    options = ["--model", "tiny", "--models-dir", str(models_dir), "--device", "cpu"]
    return subprocess.Popen(
        [*command, *options], stderr=subprocess.PIPE, text=True, env={**os.environ, **env}
    )


def test_embed_starts_without_torchs_compiler(
    edge_frames: Path, models_dir: Path, tmp_path: Path
) -> None:
    code = (
        "import sys\nfrom virnucpro_core.cli import run\nassert run() == 0\n"
        "assert 'torch._dynamo' not in sys.modules, 'it takes a second to import'"
    )
    output = tmp_path / "shard.h5"
    options = ["--model", "tiny", "--models-dir", str(models_dir), "--device", "cpu"]
    command = ["embed", str(edge_frames), "-o", str(output), *options]
    subprocess.run([sys.executable, "-c", code, *command], check=True)
    assert output.exists()


def test_embed_rows_are_both_encoders_vectors_in_table_order(
    shard: Path, edge_frames: Path, tiny: Model
) -> None:
    table = pq.read_table(edge_frames)
    names, values = read(shard)
    assert names == table["frame_id"].to_pylist()
    nucleotide = vnp.load_dnabert_s(tiny.nucleotide).embed(table["nucleotide"].to_pylist())
    protein = vnp.load_esm2(tiny.protein).embed(table["protein"].to_pylist())
    assert np.abs(values - np.hstack([nucleotide, protein])).max() < 1e-5
    with h5py.File(shard) as file:
        assert file["frame_id"].shape == (len(names),)
        assert file["embedding"].dtype == np.float32
        assert file["embedding"].shape == (len(names), tiny.dim)
        assert {"format", "model", "weights", "precision", "packed", "numerics", "version"} <= set(
            file.attrs
        )
        assert file.attrs["complete"]
    assert [path.name for path in shard.parent.iterdir()] == ["shard.h5"]


def test_embed_packing_disabled_gives_the_same_embeddings(
    shard: Path, edge_frames: Path, tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRNUCPRO_DISABLE_PACKING", "true")
    embed(edge_frames, tmp_path / "alone.h5", tiny, devices=CPU)
    alone = EmbeddingFile(tmp_path / "alone.h5")
    assert not alone.origin.packed
    assert np.abs(read(shard)[1] - read(tmp_path / "alone.h5")[1]).max() < 1e-5


def test_embed_table_longer_than_a_slab_gives_the_same_embeddings(
    shard: Path, edge_frames: Path, tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virnucpro_core.embedding.schedule.SLAB", 50)
    embed(edge_frames, tmp_path / "slabs.h5", tiny, devices=CPU)
    assert np.abs(read(shard)[1] - read(tmp_path / "slabs.h5")[1]).max() < 1e-5


def test_embed_two_processes_give_the_same_embeddings(
    shard: Path, edge_frames: Path, tiny: Model, tmp_path: Path
) -> None:
    embed(edge_frames, tmp_path / "two.h5", tiny, devices="cpu,cpu")
    assert np.abs(read(shard)[1] - read(tmp_path / "two.h5")[1]).max() < 1e-5


def test_embed_table_without_frames_gives_an_empty_shard(tiny: Model, tmp_path: Path) -> None:
    (tmp_path / "short.fa").write_text(">short\nAC\n")
    translate([tmp_path / "short.fa"], tmp_path / "frames.parquet", WINDOW)
    embed(tmp_path / "frames.parquet", tmp_path / "shard.h5", tiny, devices=CPU)
    merge([tmp_path / "shard.h5"], [tmp_path / "frames.parquet"], tmp_path / "embeddings.h5")
    for name in ("shard.h5", "embeddings.h5"):
        assert read(tmp_path / name)[1].shape == (0, tiny.dim)


def test_embed_leaves_the_checkpoints_of_a_running_process_alone(
    shard: Path, edge_frames: Path, tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The orphan of a killed run and its successor are at work on the same frames."""
    kept = tmp_path / "kept"

    def successor(*_: object) -> None:
        monkeypatch.undo()
        embed(edge_frames, tmp_path / "second.h5", tiny, devices=CPU, checkpoint_dir=kept)
        (folder,) = (path for path in kept.iterdir() if path.is_dir())
        assert {path.name for path in folder.iterdir()} == {"shard.h5", "done"}
        raise KeyboardInterrupt

    monkeypatch.setattr("virnucpro_core.embedding.engine.run_ranks", successor)
    with pytest.raises(KeyboardInterrupt):
        embed(edge_frames, tmp_path / "first.h5", tiny, devices=CPU, checkpoint_dir=kept)
    assert np.array_equal(read(shard)[1], read(tmp_path / "second.h5")[1])
    assert not list(tmp_path.glob("second.h5.*"))


def test_shard_tells_what_embedded_it(shard: Path) -> None:
    (used,) = EmbeddingFile(shard).used()
    assert (used["device"], used["precision"], used["tasks"]) == ("CPU", "fp32", 1)
    assert int(used["peak_bytes"]) > 1 << 20


@pytest.mark.parametrize(
    "end", [StoppedError("stopped"), OSError("no room")], ids=["stop", "fault"]
)
def test_shard_of_a_run_that_was_begun_again_tells_what_embedded_before(
    end: Exception,
    tiny: Model,
    edge_frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = engine.run_schedule

    def broken_off(*given: Any) -> None:
        whole(*given)
        with given[4]("read"):
            time.sleep(0.3)
        raise end

    with monkeypatch.context() as patched:
        patched.setattr(engine, "run_schedule", broken_off)
        with pytest.raises(type(end)):
            embed(edge_frames, tmp_path / "shard.h5", tiny, devices=CPU)
    embed(edge_frames, tmp_path / "shard.h5", tiny, devices=CPU)
    (used,) = EmbeddingFile(tmp_path / "shard.h5").used()
    assert (used["device"], used["tasks"]) == ("CPU", 1)  # the second run had nothing to embed
    assert (used["seconds"] >= 0.3) is isinstance(end, StoppedError)


@pytest.fixture(scope="module")
def many_frames(edge: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough frames that a run, one sequence at a time, lasts for several seconds."""
    return repeated_frames(edge, tmp_path_factory.mktemp("many"), 12)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_embed_killed_half_way_goes_on_and_gives_an_unbroken_runs_result(
    number: signal.Signals, many_frames: Path, models_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shard.h5"
    slow = {"VIRNUCPRO_DISABLE_PACKING": "true"}
    first = run_embed(many_frames, output, models_dir, **slow)
    deadline = time.monotonic() + 120
    while not any(p.stat().st_size for p in tmp_path.glob("shard.h5.partial/*/*.journal")):
        assert first.poll() is None, first.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(number)
    assert first.wait() == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    assert not output.exists()

    second = run_embed(many_frames, output, models_dir, **slow)
    _, log = second.communicate()
    assert second.returncode == 0, log
    kept, total = map(int, log.split("cpu: ")[1].split(" batches kept")[0].split(" of "))
    assert 0 < kept < total == pq.read_metadata(many_frames).num_rows

    unbroken = run_embed(many_frames, tmp_path / "unbroken.h5", models_dir, **slow)
    unbroken.communicate()
    assert read(output)[0] == read(tmp_path / "unbroken.h5")[0]
    assert np.array_equal(read(output)[1], read(tmp_path / "unbroken.h5")[1])


def cut_short(frames: Path, output: Path, model: Model, **options: Any) -> None:
    """A run that ends when all rows are written, before the shard is sealed and renamed."""

    def fail(*_: object) -> None:
        raise VirNucProError("the run ends before its shard is sealed")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("virnucpro_core.embedding.engine.finish", fail)
        with pytest.raises(VirNucProError, match="the run ends"):
            embed(frames, output, model, devices=CPU, **options)


def test_embed_rows_of_another_run_are_neither_used_nor_touched(
    edge_frames: Path,
    tiny: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Other weights, another precision, packing, or kernels: all that decides values."""
    kept = tmp_path / "checkpoints"
    other = write_tiny_model(tmp_path / "models", seed=1)
    caplog.set_level(logging.INFO, "virnucpro.embed")
    cut_short(edge_frames, tmp_path / "a.h5", tiny, checkpoint_dir=kept)
    (first,) = kept.iterdir()
    before = {path: path.read_bytes() for path in first.iterdir()}
    cut_short(edge_frames, tmp_path / "a.h5", other, checkpoint_dir=kept)
    cut_short(edge_frames, tmp_path / "a.h5", tiny, checkpoint_dir=kept, precision="bf16")
    monkeypatch.setenv("VIRNUCPRO_DISABLE_PACKING", "1")
    cut_short(edge_frames, tmp_path / "a.h5", tiny, checkpoint_dir=kept)
    monkeypatch.undo()
    monkeypatch.setenv("VIRNUCPRO_ATTENTION", "padded")
    cut_short(edge_frames, tmp_path / "a.h5", tiny, checkpoint_dir=kept)
    monkeypatch.setattr("virnucpro_core.models.attention.REVISION", 0)
    cut_short(edge_frames, tmp_path / "a.h5", tiny, checkpoint_dir=kept)
    assert len(list(kept.iterdir())) == 6
    assert {path: path.read_bytes() for path in first.iterdir()} == before
    assert caplog.text.count(": 0 of ") == 6, "batches kept"


def test_embed_after_another_input_was_tried_the_first_goes_on_where_it_stood(
    edge: Path,
    edge_frames: Path,
    shard: Path,
    tiny: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "shard.h5"
    cut_short(edge_frames, output, tiny)
    (tmp_path / "other.fa").write_text(f">x\n{'GCA' * 200}\n")
    translate([tmp_path / "other.fa"], tmp_path / "other.parquet", WINDOW)
    embed(tmp_path / "other.parquet", output, tiny, devices=CPU)
    with pytest.raises(InputError, match=r"shard\.h5: holds embeddings of other frames, .*--force"):
        embed(edge_frames, output, tiny, devices=CPU)
    monkeypatch.setattr("virnucpro_core.embedding.engine.run_ranks", None)  # nothing is left to do
    embed(edge_frames, output, tiny, devices=CPU, force=True)
    assert np.array_equal(read(output)[1], read(shard)[1])
    assert not list(tmp_path.glob("*.partial"))


def test_embed_output_that_another_process_writes_is_refused_at_once(
    edge_frames: Path, tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "shard.h5"

    def second(*_: object) -> None:
        monkeypatch.undo()
        with pytest.raises(BusyError, match=r"shard\.h5: another process is writing it; wait"):
            embed(edge_frames, output, tiny, devices=CPU)
        raise KeyboardInterrupt

    monkeypatch.setattr("virnucpro_core.embedding.engine.run_ranks", second)
    with pytest.raises(KeyboardInterrupt):
        embed(edge_frames, output, tiny, devices=CPU)
    assert not list(tmp_path.iterdir()), "nothing was finished, so nothing is left"


@pytest.mark.parametrize("damage", ["torn journal", "row", "shard cut short", "no journal"])
def test_embed_damaged_work_is_done_again(
    shard: Path,
    edge_frames: Path,
    tiny: Model,
    tmp_path: Path,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    output = tmp_path / "shard.h5"
    cut_short(edge_frames, output, tiny)
    (work,) = tmp_path.glob("shard.h5.partial/*/")
    journal = work / "rank0.journal"
    if damage == "torn journal":
        os.truncate(journal, journal.stat().st_size - 7)
    elif damage == "row":
        with h5py.File(work / "shard.h5", "r+") as file:
            file["embedding"][3, 5] += 1
    elif damage == "shard cut short":
        os.truncate(work / "shard.h5", 10_000)
    else:
        journal.unlink()
    embed(edge_frames, output, tiny, devices=CPU)
    assert ("again" in caplog.text) == (damage != "no journal")
    assert np.abs(read(output)[1] - read(shard)[1]).max() < 1e-5  # a row alone in its batch


def test_embed_complete_shard_is_left_as_it_is(
    shard: Path, edge_frames: Path, tiny: Model, caplog: pytest.LogCaptureFixture
) -> None:
    before = shard.stat().st_mtime_ns
    with caplog.at_level(logging.INFO, "virnucpro.embed"):
        embed(edge_frames, shard, tiny, devices=CPU)
    assert "complete already" in caplog.text
    assert shard.stat().st_mtime_ns == before


def test_embed_killed_after_the_rename_leaves_no_work_behind_at_its_next_run(
    edge_frames: Path, tiny: Model, tmp_path: Path
) -> None:
    output = tmp_path / "shard.h5"
    cut_short(edge_frames, output, tiny)
    (work,) = tmp_path.glob("shard.h5.partial/*/")
    shutil.copytree(work, tmp_path / "kept")
    embed(edge_frames, output, tiny, devices=CPU)
    shutil.move(tmp_path / "kept", work)
    embed(edge_frames, output, tiny, devices=CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["shard.h5"]


def test_embed_table_of_another_window_is_refused(edge: Path, tiny: Model, tmp_path: Path) -> None:
    translate([edge], tmp_path / "frames.parquet", 500)
    with pytest.raises(InputError, match="windows of 500 bases, tiny takes 300"):
        embed(tmp_path / "frames.parquet", tmp_path / "shard.h5", tiny, devices=CPU)
