"""Blocks of finished rows, and the threads around the model."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from virnucpro_core.embedding.blocks import block_writer
from virnucpro_core.embedding.timing import Stages


def test_blocks_of_a_run_of_days_stay_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr("os.fsync", lambda _: None)
    with block_writer(tmp_path, 1, Stages()) as writer:
        for row in range(20_000):
            writer.add(np.array([row]), np.zeros((1, 1), np.float32))
    blocks = [np.load(path) for path in sorted(tmp_path.iterdir())]
    assert 300 < len(blocks) < 1500
    assert np.array_equal(np.concatenate(blocks)["row"], np.arange(20_000))
