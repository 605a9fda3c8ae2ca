"""A disk that is full, for every stage and file: a sentence, no part of a file, and on with room.

A limit on the size of files stands for it: it needs no disk of one's own, and fails the same calls.
"""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_cli import assert_refused, virnucpro

from virnucpro_core import cli
from virnucpro_core.models.store import Model
from virnucpro_core.results.classify import classify
from virnucpro_core.sequences.split import split

COMMANDS = {
    "split": "split FASTA -o OUT --shard-bp 9000",
    "translate": "translate FASTA -o OUT/f.parquet --window 300 --fasta-dir OUT/d",
    "embed": "embed FRAMES -o OUT/s.h5 MODEL --device cpu",
    "merge": "merge SHARD --frames FRAMES -o OUT/e.h5",
    "merge, copied": "merge SHARD --frames FRAMES -o OUT/e.h5 --copy",
    "predict": "predict FASTA -o OUT/p MODEL --device cpu",
    "classify": "classify SHARD --frames FRAMES --contigs CONTIGS -o OUT MODEL --sample s",
    "report": "report RESULTS -o OUT/r.html",
    "import": "models import own PARTS --models-dir OUT --window 300",
    "train": "train --virus VIRUS --other OTHER -o OUT/t --window 300 --device cpu",
    "evaluate": "evaluate --virus VIRUS --other OTHER MODEL --device cpu -o OUT/e",
    "validate": "validate FRAMES MODEL --precision bf16 --sample 3 --json OUT/v.json",
}


@pytest.fixture(scope="module")
def names(
    edge: Path,
    edge_frames: Path,
    shard: Path,
    tiny: Model,
    fastas: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[object]]:
    """What the words of the commands stand for."""
    folder = tmp_path_factory.mktemp("results")
    split([edge], folder)
    classify(shard, [edge_frames], folder / "contigs.parquet", folder / "out", tiny)
    parts = ["--dnabert-s", tiny.nucleotide, "--esm2", tiny.protein]
    return {
        "FASTA": [edge],
        "FRAMES": [edge_frames],
        "SHARD": [shard],
        "CONTIGS": [folder / "contigs.parquet"],
        "RESULTS": [folder / "out"],
        "VIRUS": [fastas["virus"]],
        "OTHER": [fastas["other"]],
        "MODEL": ["--model", "tiny", "--models-dir", tiny.folder.parent],
        "PARTS": [*parts, "--classifier", tiny.classifier],
    }


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def written(out: Path) -> dict[str, int]:
    return {
        str(path.relative_to(out)): path.stat().st_size for path in out.rglob("*") if path.is_file()
    }


@pytest.mark.usefixtures("quick_training")
@pytest.mark.parametrize("stage", COMMANDS)
def test_full_disk_exits_1_with_a_sentence_and_goes_on_with_room(
    stage: str,
    names: dict[str, list[object]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    def run(out: Path) -> tuple[int, list[str]]:
        words = COMMANDS[stage].replace("OUT", str(out)).split()
        code = cli.run([str(part) for word in words for part in names.get(word, [word])])
        return code, capsys.readouterr().err.strip().splitlines()

    code, said = run(tmp_path / "whole")
    assert code == 0, said
    whole = written(tmp_path / "whole")
    sizes = sorted(set(whole.values()) - {0})
    # from no room at all to room for all but the last byte of the largest file; of a page, the last
    # hundred, since it tells times
    last = sizes[-1] - (100 if stage == "predict" else 1)
    for size in sorted({0, sizes[0] - 1, sizes[len(sizes) // 2] // 2, last}):
        out = tmp_path / f"at{size}"
        with room(size):
            code, said = run(out)
        assert code == 1, (size, said)
        assert said[-1].startswith((f"virnucpro: {out}", f"virnucpro: {temporary}")), (size, said)
        assert "File too large; nothing finished is lost, mend that and run" in said[-1]
        left = written(out) if out.exists() else {}
        assert not written(temporary)
        assert not [name for name in left if name.endswith((".partial", ".lock"))]
        assert not [name for name in left if name.endswith("model.json")]
        for name, bytes_ in left.items():
            if name.endswith("summary.json"):  # with times, of more digits or fewer
                json.loads((out / name).read_text())
            else:
                assert bytes_ == whole.get(name, bytes_)
        code, said = run(out)
        assert code == 0, said
        assert set(written(out)) == set(whole)


def test_full_disk_under_the_temporary_folder_exits_1_and_names_it(
    names: dict[str, list[object]],
    tmp_path: Path,
    run: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fastas = ["--virus", *names["VIRUS"], "--other", *names["OTHER"]]
    with room(1000):
        code, _, err = run("evaluate", *fastas, *names["MODEL"], "--test-part", "--device", "cpu")
    assert code == 1
    assert err.startswith(f"virnucpro: {tmp_path}/")
    assert "File too large; nothing finished is lost, mend that and run" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--version"], ["predict", "--help"], ["models", "list"]])
def test_full_disk_under_stdout_exits_1_with_a_sentence(words: list[str]) -> None:
    full = Path("/dev/full")
    if not (full.exists() and stat.S_ISCHR(full.stat().st_mode)):
        pytest.skip("no /dev/full here")
    with full.open("w") as stdout:
        run = subprocess.run(
            [sys.executable, "-m", "virnucpro_core.cli", *words],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert run.returncode == 1
    assert run.stderr.splitlines()[0].endswith("run the same command again.")
    assert len(run.stderr.splitlines()) == 1


def test_reader_of_stdout_that_has_gone_is_no_traceback() -> None:
    run = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m virnucpro_core.cli models list | true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in run.stderr
    assert "Exception ignored" not in run.stderr


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "link", "dangling link"])
def test_output_that_is_no_regular_file_is_refused_and_a_link_followed(
    kind: str, edge: Path, tmp_path: Path
) -> None:
    path = tmp_path / "there"
    match kind:
        case "device":
            path = Path("/dev/null")  # as a user who may not replace it, and as root
            if os.access("/dev", os.W_OK):
                path = tmp_path / "there"
                try:
                    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
                except PermissionError:
                    pytest.skip("no device can be made here")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path = Path()
        case "link":
            (tmp_path / "target").write_text("old")
            path.symlink_to("target")
        case "dangling link":
            path.symlink_to("target")
    before = path.lstat()
    run = virnucpro("translate", edge, "-o", path, "--window", 300, cwd=tmp_path)
    if "link" in kind:
        assert run.returncode == 0, run.stderr
        assert (tmp_path / "target").read_bytes()[:4] == b"PAR1"
    else:
        says = "Is a directory" if kind == "folder" else "is no regular file and cannot be replaced"
        assert_refused(run, 2, says)
    assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)
