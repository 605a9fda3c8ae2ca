"""How far a run is: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from terminal import on_terminal
from tiny import repeated_frames

from virnucpro_core import progress
from virnucpro_core.progress import Progress, Row, screen
from virnucpro_core.sequences.fasta import read_fasta

STAGES = ("split", "translate", "embed", "merge", "classify", "report")


@pytest.fixture
def predict(edge: Path, models_dir: Path, tmp_path: Path) -> list[object]:
    options = ["--model", "tiny", "--models-dir", models_dir, "--device", "cpu"]
    return ["predict", edge, "-o", tmp_path / "out", *options]


def test_predict_on_a_terminal_draws_a_bar_a_stage_and_nothing_of_it_stays(
    predict: list[object], tmp_path: Path
) -> None:
    seen = on_terminal(*predict, folder=tmp_path)
    assert seen.code == 0, seen.text
    drawn = re.findall(rf"^({'|'.join(STAGES)}) [━╸╺]+", seen.text.replace("\r", "\n"), re.M)
    assert tuple(dict.fromkeys(drawn)) == STAGES
    assert "100%" in seen.text
    assert re.search(r"embed .*loading the model", seen.text)
    assert "\x1b[3" in seen.drawn or "\x1b[9" in seen.drawn, "in colour"
    assert seen.drawn.endswith("\x1b[2K"), "the last bar is wiped out"
    assert seen.drawn.count("\x1b[?25l") == seen.drawn.count("\x1b[?25h"), "the cursor is back"
    logged = re.findall(r"virnucpro\.embed: 121 frames embedded .*\r\n", seen.text)
    assert len(logged) == 1, "log lines stand above the bars, each whole"
    assert "━" not in seen.out
    assert seen.out.startswith("44 contigs: ")


def test_predict_on_a_terminal_with_no_color_draws_without_colour(
    predict: list[object], tmp_path: Path
) -> None:
    seen = on_terminal(*predict, folder=tmp_path, NO_COLOR="1")
    assert "embed ━" in seen.text
    assert not re.search(r"\x1b\[(3|9)\d(;\d+)*m", seen.drawn)


def test_predict_on_a_dumb_terminal_draws_nothing(predict: list[object], tmp_path: Path) -> None:
    seen = on_terminal(*predict, folder=tmp_path, TERM="dumb")
    assert seen.code == 0
    assert "\x1b" not in seen.drawn
    assert "virnucpro.embed: 121 frames embedded" in seen.drawn


def test_embed_on_two_devices_draws_a_bar_each(
    edge_frames: Path, models_dir: Path, tmp_path: Path
) -> None:
    options = ["--model", "tiny", "--models-dir", models_dir, "--device", "cpu,cpu"]
    seen = on_terminal("embed", edge_frames, "-o", tmp_path / "s.h5", *options, folder=tmp_path)
    assert seen.code == 0, seen.text
    for rank in range(2):
        assert re.search(rf"embed cpu \({rank}\) [━╸╺]+ +100%", seen.text), seen.text
    assert seen.text.count("[cpu] virnucpro.embed: cpu: ") >= 2, "lines of the workers' logs"


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_embed_stopped_on_a_terminal_gives_the_cursor_back(
    devices: str, edge: Path, models_dir: Path, tmp_path: Path
) -> None:
    frames = repeated_frames(edge, tmp_path, 12)
    words = ["embed", frames, "-o", tmp_path / "s.h5", "--model", "tiny", "--device", devices]
    seen = on_terminal(
        *words,
        *("--models-dir", models_dir),
        folder=tmp_path,
        stop_at=" left",
        VIRNUCPRO_DISABLE_PACKING="true",  # one sequence at a time, so that it lasts
    )
    assert seen.code == 75, seen.text
    assert seen.drawn.rfind("\x1b[?25h") > seen.drawn.rfind("\x1b[?25l")
    assert "SIGTERM: finishing the batch at hand\r\n" in seen.text
    assert seen.text.splitlines()[-1].startswith("virnucpro: stopped by a signal")


def test_predict_refused_on_a_terminal_gives_the_cursor_back(tmp_path: Path) -> None:
    (tmp_path / "bad.fa").write_text(">a\nACGT\n>a\nACGT\n" * 50 + ">b\nEEEE\n")
    seen = on_terminal("split", tmp_path / "bad.fa", "-o", tmp_path / "out", folder=tmp_path)
    assert seen.code == 2
    assert "split ━" in seen.text
    assert seen.drawn.rfind("\x1b[?25h") > seen.drawn.rfind("\x1b[?25l")
    assert seen.text.splitlines()[-1].strip().startswith("virnucpro: ")


def test_predict_without_a_terminal_writes_lines_with_the_time_of_day(
    predict: list[object], ask: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINES_APART", 0.0)
    monkeypatch.setattr(progress, "REFRESH", 0.0)
    said = ask(*predict)
    pace = r"[\d,]+ a second, 0:00:\d\d left"
    line = rf"virnucpro\.embed: \d\d:\d\d:\d\d (\d+)% of [\d,]+ tokens, {pace}"
    shares = [int(share) for share in re.findall(line, said)]
    assert 2 <= len(shares) <= 20
    assert all(after - before >= 4 for before, after in pairwise(shares))
    assert shares[-1] > 90
    assert "\x1b" not in said


def test_each_stage_says_what_there_is_and_ends_with_all_of_it(
    predict: list[object], edge: Path, ask: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, list[Row]] = {}

    @contextmanager
    def recorded(stage: str, _: str) -> Iterator[Callable[[Row], None]]:
        yield shown.setdefault(stage, []).append

    monkeypatch.setattr(progress, "REFRESH", 0.0)
    monkeypatch.setattr(progress, "screen", recorded)
    ask(*predict)
    bases = sum(len(sequence) for _, _, sequence in read_fasta([edge]))
    found = {stage: (rows[0].total, rows[-1].done) for stage, rows in shown.items()}
    for stage in ("split", "translate"):
        guessed, done = found.pop(stage)
        assert guessed == pytest.approx(bases, rel=0.1), "by the size of the file"
        assert done == bases
    assert found.pop("embed") == (None, shown["embed"][-1].total)
    assert found == {"merge": (121, 121), "classify": (44, 44), "report": (None, 0)}


def test_lines_of_a_short_run_are_left_out(
    predict: list[object], ask: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "tokens, " not in re.sub(r".*with tiny", "", ask(*predict))


def test_lines_after_30_seconds_without_5_percent_are_written_all_the_same(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("virnucpro_core.progress.time.monotonic", lambda: clock[0])
    with caplog.at_level(logging.INFO, "virnucpro"), Progress("embed", None, "tokens") as shown:
        shown.begin(1_000_000, 500_000)
        for _ in range(70):
            clock[0] += 1
            shown.advance(100, "GPU 0.99 680 W")
    first, second = (record.message.partition(" ")[2] for record in caplog.records)
    assert first == "50% of 1,000,000 tokens, 100 a second, 1:22:50 left, GPU 0.99 680 W"
    assert second == "51% of 1,000,000 tokens, 100 a second, 1:22:20 left, GPU 0.99 680 W"


def test_lines_of_several_devices_are_of_their_sum(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("virnucpro_core.progress.time.monotonic", lambda: clock[0])
    with caplog.at_level(logging.INFO, "virnucpro"), screen("embed", "tokens") as show:
        for done in (0, 30):
            clock[0] += 10
            for label in ("cuda:0", "cuda:1"):
                show(Row(label, 0, done, 100, "GPU 0.99"))
    # the first device's news come before the second's
    assert caplog.messages[0].endswith(
        "15% of 200 tokens, 3 a second, 0:00:57 left, cuda:0 GPU 0.99; cuda:1 GPU 0.99"
    )


QUIET = """
import logging, sys, virnucpro_core as vnp
if sys.argv[1] == "quiet":
    logging.getLogger("virnucpro").setLevel(logging.WARNING)
shown = sys.argv[1] != "off"
calls = vnp.predict(sys.argv[2], model="tiny", models_dir=sys.argv[3], progress=shown)
"""


@pytest.mark.parametrize(("how", "drawn"), [("on", True), ("off", False), ("quiet", False)])
def test_predict_from_python_on_a_terminal_shows_bars_unless_told_otherwise(
    how: str, drawn: bool, edge: Path, models_dir: Path, tmp_path: Path
) -> None:
    seen = on_terminal(how, edge, models_dir, folder=tmp_path, program=("-c", QUIET))
    assert seen.code == 0, seen.text
    assert ("embed ━" in seen.text) == drawn
    assert "virnucpro" not in seen.text, "logging is the caller's"


def test_tab_completion_offers_the_public_names_alone() -> None:
    code = "import virnucpro_core as vnp; print(dir(vnp))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'load_classifier', 'load_dnabert_s', 'load_esm2', 'predict'" in said.stdout
    assert "import_module" not in said.stdout
