"""Blocks of finished rows, and the threads around the model."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path
from threading import Event, Timer

import numpy as np
import pytest

from virnucpro_core.embedding.blocks import block_writer
from virnucpro_core.embedding.engine import Job, embed_rank
from virnucpro_core.embedding.prefetch import side_by_side
from virnucpro_core.embedding.timing import Stages
from virnucpro_core.models.store import Model


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


def test_side_by_side_closed_early_begins_nothing_more() -> None:
    go, begun = Event(), []

    def work(item: int) -> int:
        begun.append(item)
        if item:
            go.wait()
        return item

    results = side_by_side(work, range(100), 2)
    assert next(results) == 0
    Timer(0.2, go.set).start()
    results.close()
    assert sorted(begun) == [0, 1, 2]


def test_embed_cut_short_leaves_no_half_record_of_its_device(
    edge_frames: Path, tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rerun on fewer devices would read it, and not write it again."""

    def half(path: Path, text: str) -> None:
        path.write_bytes(text[: len(text) // 2].encode())
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        embed_rank(Job(edge_frames, tiny, "fp32", None, tmp_path), "cpu", 0, 1, Event())
    assert list(tmp_path.glob("*.npy"))
    assert not list(tmp_path.glob("used*"))
