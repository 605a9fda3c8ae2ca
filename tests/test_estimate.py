"""A CPU that would work for long says so, and for how long."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from virnucpro_core.embedding import estimate
from virnucpro_core.embedding.engine import embed
from virnucpro_core.embedding.estimate import cpu_seconds, cpu_warning, in_words
from virnucpro_core.embedding.schedule import protein_tokens
from virnucpro_core.models.store import Model


def test_embed_on_a_cpu_for_long_warns_with_an_estimate(
    tiny: Model,
    edge_frames: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimate, "LONG", 0)
    embed(edge_frames, tmp_path / "shard.h5", tiny, devices=[torch.device("cpu")])
    words = in_words(cpu_seconds(edge_frames, tiny))
    assert f"the CPU does the work, and takes about {words}" in caplog.text


def test_estimate_grows_with_the_models_weights(
    tiny: Model, edge_frames: Path, tmp_path: Path
) -> None:
    """Weights of the published models' size, in sparse files."""
    for file in tiny.encoder_weights:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
        os.truncate(tmp_path / file, 6 * 10**9 // len(tiny.encoder_weights))
    large = replace(tiny, folder=tmp_path)
    tokens = protein_tokens(edge_frames).sum()
    cores = len(os.sched_getaffinity(0))
    expected = tokens * 2 * 3e9 / (2e11 * cores / 8)
    assert cpu_seconds(edge_frames, large) == pytest.approx(expected, rel=0.01)


def test_short_work_of_a_cpu_needs_no_warning(tiny: Model, edge_frames: Path) -> None:
    assert cpu_warning(edge_frames, tiny) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(59, "59 seconds"), (150, "2 minutes"), (7300, "2 hours"), (1e6, "12 days")],
)
def test_length_of_time_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
