"""`-`: FASTA that comes by standard input, from the command line."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from test_cli import assert_refused

MINI = ("--model", "mini")


def fed(
    content: bytes | Any, *arguments: object, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command with this on its standard input: bytes come by a pipe, else it is a file."""
    command = [sys.executable, "-m", "virnucpro_core", *map(str, arguments)]
    how = {"input": content} if isinstance(content, bytes) else {"stdin": content}
    run = subprocess.run(command, capture_output=True, cwd=cwd, check=False, **how)
    code, out, err = run.returncode, run.stdout.decode(), run.stderr.decode()
    return subprocess.CompletedProcess(command, code, out, err)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress])
def test_predict_of_standard_input_is_that_of_the_file(
    compress: Any, three: Path, tmp_path: Path
) -> None:
    content = compress(three.read_bytes())
    run = fed(content, "predict", "-", "-o", tmp_path / "out", *MINI)
    assert run.returncode == 0, run.stderr
    assert fed(b"", "predict", three, "-o", tmp_path / "file", *MINI).returncode == 0
    tables = [(tmp_path / name / "contigs.tsv").read_bytes() for name in ("out", "file")]
    assert tables[0] == tables[1]
    about = json.loads((tmp_path / "out" / "summary.json").read_text())
    digest = hashlib.sha256(content).hexdigest()
    assert about["input"] == [{"name": "stdin", "bytes": len(content), "sha256": digest}]
    assert about["sample"] == "stdin"
    assert left(tmp_path) == ["file", "out"]


def test_predict_of_standard_input_is_known_again_by_its_content(
    three: Path, tmp_path: Path
) -> None:
    """By a pipe, by a file behind `<`, or by its name."""
    words = ("-o", tmp_path / "out", *MINI)
    assert fed(three.read_bytes(), "predict", "-", *words).returncode == 0
    again = fed(three.read_bytes(), "predict", "-", *words)
    assert "is finished already" in again.stderr
    with three.open("rb") as handle:
        assert "is finished already" in fed(handle, "predict", "-", *words).stderr
    assert "calling again from the scores" in fed(b"", "predict", three, *words).stderr
    other = fed(three.read_bytes().replace(b">", b">o"), "predict", "-", *words)
    assert_refused(other, 2, "holds results of another input; give another folder")


def test_predict_of_standard_input_goes_on_after_a_stop(edge: Path, tmp_path: Path) -> None:
    content, out = edge.read_bytes(), tmp_path / "out"
    words = ("predict", "-", "-o", out, *MINI, "--token-budget", 300)
    stop = (
        "import os, signal, sys\n"
        "from virnucpro_core import cli\n"
        "from virnucpro_core.embedding import engine\n"
        "run = engine.run_schedule\n"
        "def stopped(*arguments):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return run(*arguments)\n"
        "engine.run_schedule = stopped\n"
        f"sys.argv[1:] = {list(map(str, words))}\n"
        "cli.main()\n"
    )
    first = subprocess.run(
        [sys.executable, "-c", stop], input=content, capture_output=True, check=False
    )
    assert first.returncode == 75, first.stderr
    assert (out / ".work").is_dir()
    assert_refused(fed(b">a\nACGT\n", *words), 2, "a stopped run's work on another input")
    run = fed(content, *words)
    assert run.returncode == 0, run.stderr
    assert "44 contigs" in run.stdout


def test_stages_and_estimate_take_standard_input(three: Path, tmp_path: Path) -> None:
    content = gzip.compress(three.read_bytes())
    pieces, frames = tmp_path / "pieces", tmp_path / "f.parquet"
    run = fed(content, "split", "-", "-o", pieces, "--model", "mini")
    assert run.returncode == 0, run.stderr
    assert pq.read_table(pieces / "contigs.parquet")["contig"].to_pylist() == ["c0", "c1", "c2"]
    assert fed(content, "split", "-", "-o", pieces).returncode == 0, "the same input again"
    assert_refused(fed(b">a\nACGT\n", "split", "-", "-o", pieces), 2, "pieces of another input")
    assert fed(content, "translate", "-", "-o", frames, *MINI).returncode == 0
    assert pq.read_table(frames)["contig"].unique().to_pylist() == ["c0", "c1", "c2"]
    run = fed(content, "estimate", "-", *MINI, cwd=tmp_path)
    assert run.stdout.startswith("3 contigs, 900 bases")
    assert left(tmp_path) == ["f.parquet", "pieces"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "/dev/stdin: the file is empty; give a FASTA of contigs"),
        (b">p\nMKLVEEL\n", "/dev/stdin, line 2: 'L' is no nucleotide"),
        (gzip.compress(os.urandom(999))[:500], "/dev/stdin: cannot be read to its end"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "split", "translate"])
def test_bad_standard_input_is_refused_and_leaves_nothing(
    command: str, content: bytes, says: str, tmp_path: Path
) -> None:
    run = fed(content, command, "-", "-o", tmp_path / "out", *MINI)
    assert_refused(run, 2, says)
    assert left(tmp_path) == []


def test_standard_input_named_twice_or_closed_is_refused(three: Path, tmp_path: Path) -> None:
    words = ("predict", "-", "-", "-o", tmp_path / "out", *MINI)
    assert_refused(fed(three.read_bytes(), *words), 2, "/dev/stdin: is named twice")
    command = f"{sys.executable} -m virnucpro_core predict - -o {tmp_path / 'out'} --model mini <&-"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert_refused(run, 2, "/dev/stdin: no such file")


def test_a_terminal_as_standard_input_is_refused_at_once(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    run = fed(theirs, "predict", "-", "-o", tmp_path / "out", *MINI)
    os.close(ours)
    os.close(theirs)
    assert_refused(run, 2, "standard input is a terminal; send FASTA into it")
