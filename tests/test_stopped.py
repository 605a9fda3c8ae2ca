"""Commands that a signal or a lack of memory ends: exit code 75, a sentence, no partial file."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_cli import assert_refused, virnucpro

from virnucpro_core import cli
from virnucpro_core.errors import GpuMemoryError, InputError, out_of_memory
from virnucpro_core.models.store import Model
from virnucpro_core.results.classify import classify
from virnucpro_core.sequences.split import split

SLOW_DISK = """
import os, sys, time
from pathlib import Path
marker = sys.argv.pop(1)
def fsync(file):
    Path(marker).touch()
    for _ in range(600):  # a signal may be given to another thread, which ends no sleep
        time.sleep(0.1)
os.fsync = fsync
from virnucpro_core.cli import main
main()
"""
"""The command line on a disk that never says that a file is safe: it hangs before its first."""


@pytest.fixture(scope="module")
def results(
    edge: Path,
    edge_frames: Path,
    shard: Path,
    tiny: Model,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The inventory of `edge`, and its results in `out`."""
    folder = tmp_path_factory.mktemp("results")
    split([edge], folder)
    classify(shard, [edge_frames], folder / "contigs.parquet", folder / "out", tiny)
    return folder


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("split FASTA -o OUT/s", signal.SIGTERM),
        ("translate FASTA -o OUT/f.parquet --window 300 --fasta-dir OUT/d", signal.SIGUSR2),
        ("merge SHARD --frames FRAMES -o OUT/e.h5", signal.SIGINT),
        ("classify SHARD --frames FRAMES --contigs CONTIGS -o OUT/c MODEL", signal.SIGTERM),
        ("report RESULTS -o OUT/r.html", signal.SIGHUP),
        ("predict FASTA -o OUT/p MODEL", signal.SIGTERM),
        ("validate FRAMES MODEL --precision bf16 --sample 3 --json OUT/v.json", signal.SIGUSR2),
        ("models import own PARTS --models-dir OUT/m --window 300", signal.SIGTERM),
    ],
)
def test_stopped_before_its_first_file_is_safe_exits_75_and_leaves_none(
    words: str,
    number: signal.Signals,
    edge: Path,
    edge_frames: Path,
    shard: Path,
    tiny: Model,
    results: Path,
    tmp_path: Path,
) -> None:
    out, marker = tmp_path / "out", tmp_path / "hangs"
    out.mkdir()
    parts = ["--dnabert-s", tiny.nucleotide, "--esm2", tiny.protein]
    names: dict[str, list[object]] = {
        "FASTA": [edge],
        "FRAMES": [edge_frames],
        "SHARD": [shard],
        "CONTIGS": [results / "contigs.parquet"],
        "RESULTS": [results / "out"],
        "MODEL": ["--model", "tiny", "--models-dir", tiny.folder.parent],
        "PARTS": [*parts, "--classifier", tiny.classifier],
    }
    arguments = [
        str(part)
        for word in words.replace("OUT", str(out)).split()
        for part in names.get(word, [word])
    ]
    run = subprocess.Popen(
        [sys.executable, "-c", SLOW_DISK, marker, *arguments], stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    while not marker.exists():
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)
    run.send_signal(number)
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 75, said
    sentence = f"stopped by {number.name}; nothing finished is lost, run the same command again."
    assert said.splitlines()[-1] == f"virnucpro: {sentence}"
    assert [path for path in out.rglob("*") if path.is_file()] == []


def test_stopped_while_it_waits_for_its_input_exits_75(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    words = ["split", str(tmp_path / "pipe"), "-o", str(tmp_path / "new/out")]
    run = subprocess.Popen(
        [sys.executable, "-m", "virnucpro_core.cli", *words], stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "new/out/.input.json").exists():
        assert run.poll() is None
        time.sleep(0.05)
    run.terminate()
    assert "stopped by SIGTERM" in run.communicate(timeout=60)[1]
    assert run.returncode == 75
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_stopped_by_an_ignored_signal_is_not(tmp_path: Path) -> None:
    """As under nohup."""
    code = (
        "import os, signal, sys\nfrom virnucpro_core.cli import main\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nsys.argv[1:] = ['models', 'list']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    raise"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert run.returncode == 0


@pytest.mark.parametrize("kilobytes", [400_000, 1_500_000, 2_500_000])
def test_memory_that_runs_out_is_one_sentence_and_exit_code_75(
    kilobytes: int, edge: Path, tmp_path: Path
) -> None:
    """What C++ and Rust abort at, with the last megabytes, is left out: see docs/usage.md."""
    words = f"-m virnucpro_core.cli predict {edge} -o {tmp_path}/out --model mini"
    command = f"ulimit -v {kilobytes}; exec {sys.executable} {words}"
    run = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=120
    )
    assert_refused(run, 75, r"^virnucpro: .*memory ran out; nothing finished is lost, run the same")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "ask",
    [
        lambda: np.empty(1 << 50),
        lambda: torch.empty(1 << 50),
        lambda: pa.allocate_buffer(1 << 50),
        lambda: mmap.mmap(-1, 1 << 50),
    ],
    ids=["numpy", "torch", "arrow", "mmap"],
)
def test_memory_that_runs_out_is_known_in_every_library_s_words(ask: object) -> None:
    assert callable(ask)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        ask()
    assert out_of_memory(caught.value), caught.value
    assert not out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not out_of_memory(ValueError("a number"))


def test_file_that_is_called_like_a_lack_of_memory_is_no_lack_of_memory(tmp_path: Path) -> None:
    words = ["translate", tmp_path / "cannot allocate.fa", "-o", tmp_path / "f", "--window", 300]
    assert_refused(virnucpro(*words), 2, r"cannot allocate\.fa: no such file; ")


def test_memory_of_a_gpu_that_ran_out_keeps_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def out(_: object) -> None:
        try:
            raise RuntimeError("CUDA error: cannot allocate memory")
        except RuntimeError:
            raise GpuMemoryError("cuda:0: out of memory with one frame.") from None

    monkeypatch.setattr("virnucpro_core.models.store.list_models", out)
    assert cli.run(["models", "list"]) == 4
    assert "one frame" in capsys.readouterr().err


def test_memory_that_ran_out_under_a_verdict_on_a_file_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(_: object) -> None:
        try:
            np.empty(1 << 50)
        except MemoryError:
            raise InputError("f: damaged.") from None

    monkeypatch.setattr("virnucpro_core.models.store.list_models", read)
    assert cli.run(["models", "list"]) == 75
    assert "damaged" not in capsys.readouterr().err
