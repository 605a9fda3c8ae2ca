"""`predict` and one folder: finished is finished, and what is another input's stays."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sample import Sample
from test_cli import virnucpro
from test_full_disk import room
from tiny import write_tiny_model

import virnucpro_core as vnp
from virnucpro_core import one_process
from virnucpro_core.errors import BusyError, MachineError, StoppedError
from virnucpro_core.files import locked
from virnucpro_core.models.store import Model
from virnucpro_core.results.kept import MADE
from virnucpro_core.results.tables import RESULTS
from virnucpro_core.sequences.split import split

ANOTHER = "holds results of another input; give another folder, or --force"


@pytest.fixture
def fasta(edge: Path, tmp_path: Path) -> Path:
    path = tmp_path / "one.fa"
    path.write_bytes(edge.read_bytes())
    return path


@pytest.fixture
def other(fasta: Path) -> Path:
    path = fasta.with_name("other.fa")
    path.write_text(fasta.read_text().replace(">", ">other_"))
    return path


@pytest.fixture
def out(fasta: Path, models_dir: Path, tmp_path: Path) -> Path:
    """Finished results of `fasta`."""
    vnp.predict(fasta, "tiny", models_dir=models_dir, output=tmp_path / "out")
    return tmp_path / "out"


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def no_embedding(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once there are results."""

    def embed(*_: object, **__: object) -> None:
        raise AssertionError("embedded again")

    monkeypatch.setattr(one_process, "embed", embed)


@pytest.mark.usefixtures("no_embedding")
def test_predict_finished_returns_the_same_table_and_writes_nothing(
    out: Path, fasta: Path, models_dir: Path
) -> None:
    before = content(out)
    again = vnp.predict(fasta, "tiny", models_dir=models_dir, output=out)
    assert content(out) == before
    assert again.equals(vnp.predict([str(fasta)], "tiny", models_dir=models_dir, output=out))
    rows = (out / "contigs.tsv").read_text().splitlines()[1:]
    assert [row.split("\t")[0] for row in rows] == again["contig"].to_pylist()
    assert set(again["call"].to_pylist()) - {"no_call"}
    assert None in again["reason"].to_pylist()


@pytest.mark.usefixtures("no_embedding")
def test_predict_with_another_fraction_calls_again_as_a_run_from_the_beginning_would(
    out: Path, fasta: Path, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = vnp.predict(fasta, "tiny", models_dir=models_dir, output=out, min_score=0.01)
    monkeypatch.undo()
    fresh = tmp_path / "fresh"
    table = vnp.predict(fasta, "tiny", models_dir=models_dir, output=fresh, min_score=0.01)
    assert again.equals(table)
    for name in RESULTS[:-1]:
        assert (out / name).read_bytes() == (fresh / name).read_bytes(), name
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (out, fresh)]
    for about in summaries:
        about |= {"embedded_on": None, "ran": [[*one["seconds"]] for one in about["ran"]]}
    embedding = ["translate", "embed", "merge", "classify"]
    assert [about.pop("ran") for about in summaries] == [[embedding, ["call"]], [embedding]]
    assert summaries[0] == summaries[1]
    assert summaries[0]["genetic_code"] == "1"


def test_predict_with_another_fraction_on_a_full_disk_keeps_what_was_finished(
    out: Path, fasta: Path, models_dir: Path
) -> None:
    before = content(out)
    for size in (0, 3_000, *(len(found) - 1 for _, found in before.values() if len(found) > 3_000)):
        with room(size), pytest.raises(MachineError, match="File too large"):
            vnp.predict(fasta, "tiny", models_dir=models_dir, output=out, min_score=0.01)
        left = content(out)
        changed = {name for name in before if left.get(name) != before[name]}
        # where the page alone has no room, no older one stands beside the new results
        assert not changed or "report.html" not in left, size


@pytest.mark.usefixtures("no_embedding")
@pytest.mark.parametrize(
    "damage", ["scores", "model", "precision", "code", "footer", "made", "inventory"]
)
def test_predict_scores_that_are_not_this_run_s_are_not_called_from(
    damage: str, out: Path, fasta: Path, models_dir: Path, tmp_path: Path
) -> None:
    words: dict[str, Any] = {"model": "tiny", "models_dir": models_dir, "precision": None}
    match damage:
        case "scores":
            (out / "frames.parquet").unlink()
        case "footer":
            table = vnp.predict(fasta, "tiny", models_dir=models_dir, output=out)
            assert table.num_rows
            (out / "frames.parquet").write_bytes((out / "frames.parquet").read_bytes()[:-9])
        case "made":
            path = out / "frames.parquet"
            said, table = pq.read_metadata(path).metadata, pq.read_table(path)
            made = {**json.loads(said[MADE.encode()]), "numerics": "others"}
            pq.write_table(table.replace_schema_metadata({MADE: json.dumps(made)}), path)
        case "inventory":
            (out / "contigs.parquet").unlink()
        case "model":
            write_tiny_model(tmp_path / "others", seed=7)
            words["models_dir"] = tmp_path / "others"
        case "precision":
            words["precision"] = "bf16"
        case "code":
            words["genetic_code"] = 15
    with pytest.raises(AssertionError, match="embedded again"):
        vnp.predict(fasta, output=out, **words)


def test_predict_where_another_input_is_finished_touches_nothing_without_force(
    out: Path, other: Path, models_dir: Path
) -> None:
    before = content(out)
    with pytest.raises(vnp.InputError, match=ANOTHER):
        vnp.predict(other, "tiny", models_dir=models_dir, output=out)
    assert content(out) == before
    vnp.predict(other, "tiny", models_dir=models_dir, output=out, force=True)
    summary = json.loads((out / "summary.json").read_text())
    assert [part["name"] for part in summary["input"]] == ["other.fa"]
    assert summary["input"][0]["bytes"] == other.stat().st_size


def test_predict_where_another_input_was_stopped_touches_nothing_without_force(
    fasta: Path, other: Path, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise StoppedError("stopped")

    out = tmp_path / "out"
    monkeypatch.setattr(one_process, "merge", stop)
    with pytest.raises(StoppedError):
        vnp.predict(fasta, "tiny", models_dir=models_dir, output=out)
    monkeypatch.undo()
    before = content(out)
    assert ".work/shard.h5" in before
    with room(10), pytest.raises(MachineError):
        vnp.predict(fasta, "tiny", models_dir=models_dir, output=out)
    assert content(out)[".work/shard.h5"] == before[".work/shard.h5"]
    split([fasta], out / ".work")
    before = content(out)
    with pytest.raises(vnp.InputError, match="holds a stopped run's work on another input"):
        vnp.predict(other, "tiny", models_dir=models_dir, output=out)
    assert content(out) == before
    shutil.copytree(out, tmp_path / "other")
    vnp.predict(fasta, "tiny", models_dir=models_dir, output=out)
    assert not (out / ".work").exists()
    vnp.predict(other, "tiny", models_dir=models_dir, output=tmp_path / "other", force=True)
    summary = json.loads((tmp_path / "other/summary.json").read_text())
    assert summary["input"][0]["name"] == other.name


def test_predict_refused_leaves_the_pieces_of_a_run_that_was_stopped(
    fasta: Path, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([StoppedError("stopped"), vnp.InputError("refused"), vnp.InputError("refused")])

    def translate(*_: object, **__: object) -> None:
        raise next(errors)

    monkeypatch.setattr(one_process, "translate", translate)
    asked: dict[str, Any] = {"models_dir": models_dir, "output": tmp_path / "out"}
    with pytest.raises(StoppedError):
        vnp.predict(fasta, "tiny", **asked)
    with pytest.raises(vnp.InputError, match="refused"):
        vnp.predict(fasta, "tiny", **asked)
    assert (tmp_path / "out/.work/piece_00001.fasta").exists()
    with pytest.raises(vnp.InputError, match="refused"):
        vnp.predict(fasta, "tiny", models_dir=models_dir, output=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_predict_without_a_fasta_is_refused() -> None:
    with pytest.raises(vnp.InputError, match="no FASTA was given; name at least one file"):
        vnp.predict([])


def test_predict_with_a_model_that_reads_runs_gives_windows_without_a_frame_theirs(
    tmp_path: Path,
) -> None:
    (tmp_path / "in.fa").write_text(f">c\n{'TTAA' * 150}\n")
    (row,) = vnp.predict(
        tmp_path / "in.fa", "mini", output=tmp_path / "out", devices="cpu"
    ).to_pylist()
    assert row["call"] != "no_call" or row["reason"] != "no_stop_free_frame"
    frames = pq.read_table(tmp_path / "out/frames.parquet")["frame"].to_pylist()
    assert frames
    assert all(frame.islower() for frame in frames)


def test_predict_with_a_foreign_folder_of_that_name_leaves_it(
    fasta: Path, models_dir: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "out/.work/mine"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(vnp.InputError, match=r"\.work: is not a folder of predict's"):
        vnp.predict(fasta, "tiny", models_dir=models_dir, output=tmp_path / "out", force=True)
    assert [path.name for path in (tmp_path / "out").rglob("*")] == [".work", "mine"]


def test_predict_killed_before_its_folder_was_known_goes_on(
    fasta: Path, models_dir: Path, tmp_path: Path
) -> None:
    work = tmp_path / "new/.work"
    work.mkdir(parents=True)
    for name in (".contigs.parquet.partial", "..input.json.partial"):
        (work / name).write_bytes(b"PAR1")
    vnp.predict(fasta, "tiny", models_dir=models_dir, output=tmp_path / "new")
    assert not work.exists()


def test_predict_whose_work_cannot_be_removed_is_known_again(
    out: Path, fasta: Path, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, new = os.unlink, tmp_path / "new"

    def fail(path: Path, **where: Any) -> None:
        if Path(path).name == "contigs.parquet":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        remove(path, **where)

    with monkeypatch.context() as patch:
        patch.setattr("os.unlink", fail)
        vnp.predict(fasta, "tiny", models_dir=models_dir, output=new)
    assert (new / ".work/contigs.parquet").exists()
    vnp.predict(fasta, "tiny", models_dir=models_dir, output=new)
    assert not (new / ".work").exists()


def test_predict_two_at_once_in_one_folder_one_says_so_at_once(
    fasta: Path, other: Path, models_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with (
        locked(out / ".work.lock", "of the test"),
        pytest.raises(BusyError, match="out: another process works there; wait"),
    ):
        vnp.predict(other, "tiny", models_dir=models_dir, output=out)
    run = virnucpro("predict", fasta, "-o", out, "--model", "tiny", "--models-dir", models_dir)
    assert run.returncode == 0, "the lock ends with its holder"
    assert ".work.lock" not in content(out)


@pytest.mark.parametrize("existing", [False, True])
def test_predict_refused_leaves_everything_as_it_was(
    existing: bool, models_dir: Path, tmp_path: Path
) -> None:
    bad, out = tmp_path / "bad.fa", tmp_path / "new/out"
    bad.write_text(">a\nACGT\n>b\nEFIL\n")
    if existing:
        out.mkdir(parents=True)
        (out / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(vnp.InputError, match="looks like protein"):
        vnp.predict(bad, "tiny", models_dir=models_dir, output=out)
    assert sorted(tmp_path.rglob("*")) == before


def test_predict_from_a_pipe_works(fasta: Path, models_dir: Path, tmp_path: Path) -> None:
    """It is read once, so it has no digest, and is no former input."""
    os.mkfifo(tmp_path / "pipe")

    def predict(force: bool) -> int:
        feed = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(fasta.read_bytes(),))
        feed.start()
        out = tmp_path / "out"
        table = vnp.predict(
            tmp_path / "pipe", "tiny", models_dir=models_dir, output=out, force=force
        )
        feed.join()
        return int(table.num_rows)

    assert predict(force=False) == 44
    assert predict(force=True) == 44


def test_classify_where_another_sample_is_finished_touches_nothing_without_force(
    sample: Sample, tmp_path: Path
) -> None:
    sample.classify()
    sample.classify(min_score=0.1)
    path = sample.folder / "out/summary.json"
    about = json.loads(path.read_text())
    assert about["criteria"]["min_score"] == 0.1
    path.write_text(json.dumps({**about, "input": about["input"][:1]}))
    before = content(path.parent)
    with pytest.raises(vnp.InputError, match=ANOTHER):
        sample.classify()
    assert content(path.parent) == before
    sample.classify(force=True)


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_predict_on_two_devices_from_an_unguarded_script_says_what_is_missing(
    how: str, fasta: Path, tiny: Model, models_dir: Path, tmp_path: Path
) -> None:
    code = (
        "import virnucpro_core as vnp\n"
        f"vnp.predict({str(fasta)!r}, 'tiny', models_dir={str(models_dir)!r}, output='out',"
        " devices='cpu,cpu')\n"
    )
    (tmp_path / "script.py").write_text(code)
    words = [sys.executable, "script.py" if how == "file" else "-"]
    run = subprocess.run(
        words, input=code, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert 'put what the script does under `if __name__ == "__main__":`, in a file' in last
    assert not (tmp_path / "out").exists()
