"""Compare a file of embeddings with its frame table, for nf-test: ids, and values one at a time.

python compare_embeddings.py EMBEDDINGS FRAMES MODEL
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from virnucpro_core import load_dnabert_s, load_esm2
from virnucpro_core.embedding.shards import EmbeddingFile
from virnucpro_core.models.store import resolve_model
from virnucpro_core.parquet import frame_batches


def compare(embeddings: Path, frames: Path, name: str, sample: int = 20) -> str:
    table = pa.Table.from_batches(frame_batches(frames))
    parts = list(EmbeddingFile(embeddings).parts())
    ids = [frame for part, _ in parts for frame in part]
    assert ids == table["frame_id"].to_pylist(), "other frames, or in another order"
    values = np.concatenate([part for _, part in parts])
    model = resolve_model(name)
    nucleotide, protein = load_dnabert_s(model.nucleotide), load_esm2(model.protein)
    for row in np.linspace(0, len(ids) - 1, sample).astype(int).tolist():
        alone = np.hstack(
            [
                nucleotide.embed([table["nucleotide"][row].as_py()]),
                protein.embed([table["protein"][row].as_py()]),
            ]
        )
        assert np.allclose(values[row], alone, atol=1e-4, rtol=1e-4), f"{ids[row]} differs"
    return "embeddings as computed one at a time"


if __name__ == "__main__":
    print(compare(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
