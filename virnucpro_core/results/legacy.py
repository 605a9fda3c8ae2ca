"""The original's two result files, byte for byte as it writes them from the same scores."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import TextIO

import pyarrow as pa
import pyarrow.compute as pc

from virnucpro_core.results.calls import BoolArray, Float32Array, frame_is_virus

PREDICTIONS = "prediction_results.txt"
HIGHEST_SCORE = "prediction_results_highestscore.csv"
_CLASSES = ("others", "virus")
"""The original's labels, in the order of the logits."""


class Predictions:
    """Writes `prediction_results.txt`, a row a frame, as the frames come by."""

    def __init__(self, handle: TextIO) -> None:
        self._handle = handle
        handle.write("Sequence_ID\tPrediction\tscore1\tscore2\n")

    def write(self, frame_ids: Sequence[str], scores: Float32Array) -> None:
        """Write frames with scores (N, 2) of (others, virus), in the order given."""
        labels = [_CLASSES[virus] for virus in frame_is_virus(scores).astype(int).tolist()]
        # str() of a numpy float32, the shortest text that reads back, is the original's format.
        columns = map(str, scores[:, 0]), map(str, scores[:, 1])
        self._handle.writelines(
            f"{frame}\t{label}\t{other}\t{virus}\n"
            for frame, label, other, virus in zip(frame_ids, labels, *columns, strict=True)
        )


class HighestScores:
    """Writes `prediction_results_highestscore.csv`, a row a window that has a frame.

    The original sorts the rows by id as text, so the ids and calls of all windows (some 40 bytes
    each) are held until the end. Ids with a double quote are quoted as pandas quotes them.
    """

    def __init__(self) -> None:
        self._ids: list[pa.Array] = []
        self._virus: list[pa.Array] = []

    def add(self, window_ids: Sequence[str], is_virus: BoolArray) -> None:
        self._ids.append(pa.array(window_ids, pa.large_string()))
        self._virus.append(pa.array(is_virus))

    def write(self, handle: TextIO) -> None:
        writer = csv.writer(handle, delimiter="\t", lineterminator="\n")
        writer.writerow(("Modified_ID", "Is_Virus"))
        # Arrow compares UTF-8 bytes, which is the order of code points, as pandas compares text.
        ids = pa.chunked_array(self._ids, pa.large_string())
        table = pa.table({"id": ids, "virus": pa.chunked_array(self._virus, pa.bool_())})
        order = pc.sort_indices(ids)
        for start in range(0, len(order), 65_536):
            part = table.take(order.slice(start, 65_536))
            writer.writerows(zip(part["id"].to_pylist(), part["virus"].to_pylist(), strict=True))
