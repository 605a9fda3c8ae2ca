"""How long a CPU takes: said before it works for long."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from virnucpro_core.embedding import engine
from virnucpro_core.embedding.engine import embed
from virnucpro_core.embedding.schedule import protein_tokens
from virnucpro_core.models.store import Model
from virnucpro_core.sequences.pace import amount, cpu_seconds, cpu_time, in_words

CPU = "cpu"


def test_embed_on_a_cpu_for_long_warns_with_an_estimate(
    tiny: Model,
    edge_frames: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []

    def two_hours(*counts: float) -> float:
        asked.extend(counts)
        return 7300

    monkeypatch.setattr(engine, "cpu_seconds", two_hours)
    embed(edge_frames, tmp_path / "shard.h5", tiny, devices=CPU)
    assert "the CPU does the work, and takes about 2 hours" in caplog.text
    tokens, parameters = asked
    assert tokens == protein_tokens(edge_frames).sum()
    weights = [load_file(p) for p in tiny.folder.glob("*/model.safetensors")]
    assert parameters == sum(weight.numel() for file in weights for weight in file.values())


def test_short_work_of_a_cpu_needs_no_warning(
    tiny: Model, edge_frames: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        embed(edge_frames, tmp_path / "shard.h5", tiny, devices=CPU)
    assert "the CPU does the work" not in caplog.text


@pytest.mark.parametrize(
    ("threads", "small", "said"), [(9, 5e7, True), (9, 1e3, False), (8, 5e7, False)]
)
def test_embed_with_many_threads_and_a_small_model_tells_of_processes(
    tiny: Model,
    edge_frames: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    small: float,
    said: bool,
) -> None:
    monkeypatch.setattr(engine, "SMALL", small)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with caplog.at_level(logging.INFO):
            embed(edge_frames, tmp_path / "shard.h5", tiny, devices=CPU)
    finally:
        torch.set_num_threads(before)
    assert ("faster in processes: --device cpu,cpu" in caplog.text) is said


def test_published_model_on_a_cpu_takes_days_for_megabases(tmp_path: Path) -> None:
    fasta = tmp_path / "in.fa"
    fasta.touch()
    os.truncate(fasta, 10_000_000)  # sparse
    cores = len(os.sched_getaffinity(0))
    seconds = 2e6 * 2 * 2.96e9 * 8 / (5e11 * cores)
    assert cpu_seconds(2e6, 2.96e9) == pytest.approx(seconds)
    said = f"{cores} CPU cores take {in_words(seconds)} to embed it."
    assert cpu_time([fasta], "virnucpro-500") == f"With virnucpro-500, {said}"
    assert amount([fasta], "virnucpro-500", "cpu") == (
        f"1 pieces, 10000000 bases, {seconds:.0f} s on one cpu"
    )
    on_gpu = 2e6 / 100_000  # tokenising sets the pace
    assert amount([fasta], "virnucpro-500", "h100").endswith(f", {on_gpu:.0f} s on one h100")
    assert cpu_time([fasta], "own") == f"With a model as large as the published ones, {said}"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (119, "about 119 seconds"),
        (150, "about 2 minutes"),
        (7300, "about 2 hours"),
        (1e6, "about 12 days"),
    ],
)
def test_length_of_time_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
