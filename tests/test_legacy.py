"""The original's two result files, byte for byte."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from virnucpro_core.results.calls import Float32Array
from virnucpro_core.results.legacy import HIGHEST_SCORE, PREDICTIONS, HighestScores, Predictions


def written(ids: list[str], scores: Float32Array) -> tuple[str, str]:
    """Both files from the scores of frames, windows called here by the original's rule."""
    predictions, highest = io.StringIO(), io.StringIO()
    Predictions(predictions).write(ids, scores)
    windows: dict[str, list[int]] = {}
    for row, name in enumerate(ids):
        windows.setdefault(name[:-2], []).append(row)
    by_window = HighestScores()
    for name, rows in windows.items():
        best = scores[rows].max(axis=0)
        by_window.add([name], np.array([best[1] >= best[0]]))
    by_window.write(highest)
    return predictions.getvalue(), highest.getvalue()


def test_both_files_equal_the_originals(shared: Path) -> None:
    folder = shared / "reference/original_predictions"
    text = (folder / PREDICTIONS).read_text()
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    scores = np.array([row[2:] for row in rows]).astype(np.float32)
    predictions, highest = written([row[0] for row in rows], scores)
    assert predictions == text
    assert highest == (folder / HIGHEST_SCORE).read_text()


def test_scores_are_written_as_str_of_a_float32() -> None:
    scores = np.array([[1e-5, 0.99999], [0.0011595711, 0.9988405], [1, 0], [1 / 3, 2 / 3]])
    text, _ = written(["a_chunk_1F1"] * 4, scores.astype(np.float32))
    assert [line.split("\t")[2:] for line in text.splitlines()[1:]] == [
        ["1e-05", "0.99999"],
        ["0.0011595711", "0.9988405"],
        ["1.0", "0.0"],
        ["0.33333334", "0.6666667"],
    ]


def test_a_tie_is_others_for_a_frame_and_a_virus_for_its_window() -> None:
    predictions, highest = written(["a_chunk_1F1"], np.array([[0.5, 0.5]], np.float32))
    assert predictions.splitlines()[1] == "a_chunk_1F1\tothers\t0.5\t0.5"
    assert highest.splitlines()[1] == "a_chunk_1\tTrue"


def test_windows_are_called_by_their_best_scores_not_by_a_vote() -> None:
    scores = np.array([[0.6, 0.4], [0.55, 0.45], [0.2, 0.8]], np.float32)
    _, highest = written(["a_chunk_1F1", "a_chunk_1F2", "a_chunk_1R3"], scores)
    assert highest.splitlines()[1] == "a_chunk_1\tTrue"


def test_windows_are_sorted_by_id_as_text() -> None:
    names = ["b_chunk_10", "b_chunk_9", "b_chunk_1", "B_chunk_1", "é_chunk_1", "a|x_chunk_2"]
    names += ["𝒳_chunk_1", "\uffee_chunk_1"]  # by code points, not by UTF-16 units
    scores = np.tile(np.array([0.9, 0.1], np.float32), (len(names), 1))
    _, highest = written([f"{name}F1" for name in names], scores)
    assert [line.split("\t")[0] for line in highest.splitlines()[1:]] == sorted(names)


def test_every_window_of_many_is_written_once() -> None:
    names = [f"{number:05}_chunk_1" for number in range(70_000)]
    highest, handle = HighestScores(), io.StringIO()
    highest.add(names, np.arange(len(names)) % 2 == 1)
    highest.write(handle)
    rows = [line.split("\t") for line in handle.getvalue().splitlines()[1:]]
    assert rows == [[name, str(at % 2 == 1)] for at, name in enumerate(names)]


def test_an_id_with_a_double_quote_is_quoted_as_pandas_quotes_it() -> None:
    predictions, highest = written(['a"b_chunk_1F1'], np.array([[0.9, 0.1]], np.float32))
    assert predictions.splitlines()[1].startswith('a"b_chunk_1F1\t')
    assert highest.splitlines()[1] == '"a""b_chunk_1"\tFalse'


def test_without_any_frame_both_files_have_their_header_alone() -> None:
    predictions, highest = written([], np.empty((0, 2), np.float32))
    assert predictions == "Sequence_ID\tPrediction\tscore1\tscore2\n"
    assert highest == "Modified_ID\tIs_Virus\n"
