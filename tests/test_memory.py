"""A lack of memory: a sentence and exit code 75, whatever library meets it, and no wait."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_cli import assert_refused, virnucpro

from virnucpro_core import cli
from virnucpro_core.embedding.prefetch import prefetch
from virnucpro_core.errors import GpuMemoryError, InputError, out_of_memory
from virnucpro_core.models.store import resolve_model


def assert_short_of_memory(kilobytes: int, words: list[object], out: Path) -> None:
    """With so much address space a command does its work, or says that it is too little."""
    command = [sys.executable, "-m", "virnucpro_core.cli", *map(str, words)]
    limited = ["bash", "-c", f'ulimit -v {kilobytes}; exec "$@"', "bash", *command]
    run = subprocess.run(limited, capture_output=True, text=True, check=False, timeout=120)
    if kilobytes > 2_500_000 and run.returncode == 0:
        return
    says = r"^virnucpro: .*memory ran out; nothing finished is lost, run the same"
    assert_refused(run, 75, says)
    assert kilobytes > 2_500_000 or not out.exists()


@pytest.mark.parametrize("kilobytes", [400_000, 1_500_000, 2_500_000])
def test_memory_that_runs_out_is_one_sentence_and_exit_code_75(
    kilobytes: int, edge: Path, tmp_path: Path
) -> None:
    words = ["predict", edge, "-o", tmp_path / "out", "--model", "mini"]
    assert_short_of_memory(kilobytes, words, tmp_path / "out")


@pytest.mark.parametrize("kilobytes", [110_000, 150_000])
def test_memory_that_ends_a_library_while_it_loads_is_one_sentence_and_exit_code_75(
    kilobytes: int, edge: Path, tmp_path: Path
) -> None:
    """OpenBLAS ends the process with a line and code of its own."""
    assert_short_of_memory(kilobytes, ["split", edge, "-o", tmp_path / "out"], tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["predict", "embed"])
def test_memory_of_whatever_size_is_enough_or_said_to_be_too_little(
    command: str, edge: Path, edge_frames: Path, model: list[object], tmp_path: Path
) -> None:
    given = {"predict": edge, "embed": edge_frames}[command]
    for kilobytes in range(2_900_000, 5_000_000, 70_000):
        out = tmp_path / str(kilobytes)
        assert_short_of_memory(kilobytes, [command, given, "-o", out, *model], out)


NO_ROOM_FOR_A_THREAD = """
import mmap, resource, threading
from virnucpro_core.embedding.prefetch import prefetch
pages, taken, start = int(open("/proc/self/statm").read().split()[0]), [], threading.Thread.start
def start_with_the_last_memory(thread):
    stack, size = mmap.mmap(-1, 8260 << 10), 1 << 20
    while size >= 16:
        try:
            taken.append(bytes(size))
        except MemoryError:
            size //= 2
    stack.close()
    start(thread)
threading.Thread.start = start_with_the_last_memory
resource.setrlimit(resource.RLIMIT_AS, (4096 * pages + (10 << 20), -1))
try:
    next(prefetch([1]))
except OSError:
    print("refused")
"""
"""The thread has its stack, and nothing for its first allocation."""


def test_memory_that_is_too_little_for_a_thread_is_an_error_and_no_wait_for_ever() -> None:
    code = [sys.executable, "-c", NO_ROOM_FOR_A_THREAD]
    run = subprocess.run(code, capture_output=True, text=True, check=False, timeout=60)
    assert run.stdout == "refused\n", run.stderr


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_memory_that_ends_the_thread_ahead_without_a_word_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def put(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("queue.Queue.put", put)
    with pytest.raises(MemoryError):
        next(prefetch([1]))


def test_tokenizer_starts_no_threads_that_could_lack_memory() -> None:
    path = resolve_model("mini").nucleotide / "tokenizer.json"
    code = (
        "import os\nfrom pathlib import Path\n"
        "from virnucpro_core.sequences.tokens import NucleotideTokenizer\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        f"NucleotideTokenizer(Path({str(path)!r}))(['ACGT' * 100] * 100)\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    env = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=env)
    assert run.stdout == b"0\n"


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
