"""Commands that a signal or a lack of memory ends: exit code 75, a sentence, no partial file."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_cli import assert_refused, virnucpro
from tiny import write_tiny_model

from virnucpro_core import cli
from virnucpro_core.embedding.prefetch import prefetch
from virnucpro_core.errors import GpuMemoryError, InputError, out_of_memory
from virnucpro_core.models.store import Model, list_models, resolve_model, verify
from virnucpro_core.results.classify import classify
from virnucpro_core.sequences.split import split

SLOW_DISK = """
import os, sys, time
from pathlib import Path
marker, hanging = sys.argv.pop(1), sys.argv.pop(1)
def fsync(file):
    if hanging not in os.readlink(f"/proc/self/fd/{file}"):
        return
    Path(marker).touch()
    for _ in range(600):  # a signal may be given to another thread, which ends no sleep
        time.sleep(0.1)
os.fsync = fsync
if sys.argv[1] == "train":
    sys.path.insert(0, TESTS)
    from tiny import FAST
    from virnucpro_core.lab import train
    train.Recipe.read = lambda path=None: FAST
from virnucpro_core.cli import main
main()
""".replace("TESTS", repr(str(Path(__file__).parent)))
"""The command line on a disk that never says that a file is safe: it hangs before its first of a
name."""


def stopped_on_a_slow_disk(
    arguments: list[str], number: signal.Signals, folder: Path, hanging: str = ""
) -> None:
    """Run a command until it hangs, send it a signal, and compare its end with what is promised."""
    marker = folder / "hangs"
    run = subprocess.Popen(
        [sys.executable, "-c", SLOW_DISK, marker, hanging, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
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
        ("train --virus VIRUS --other OTHER -o OUT/t --window 300 --device cpu", signal.SIGTERM),
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
    fastas: dict[str, Path],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    parts = ["--dnabert-s", tiny.nucleotide, "--esm2", tiny.protein]
    names: dict[str, list[object]] = {
        "FASTA": [edge],
        "FRAMES": [edge_frames],
        "SHARD": [shard],
        "CONTIGS": [results / "contigs.parquet"],
        "RESULTS": [results / "out"],
        "VIRUS": [fastas["virus"]],
        "OTHER": [fastas["other"]],
        "MODEL": ["--model", "tiny", "--models-dir", tiny.folder.parent],
        "PARTS": [*parts, "--classifier", tiny.classifier],
    }
    arguments = [
        str(part)
        for word in words.replace("OUT", str(out)).split()
        for part in names.get(word, [word])
    ]
    stopped_on_a_slow_disk(arguments, number, tmp_path)
    assert [path for path in out.rglob("*") if path.is_file()] == []


@pytest.mark.usefixtures("quick_training")
@pytest.mark.parametrize("command", ["train", "import"])
def test_stopped_before_its_last_file_has_made_no_model_and_makes_it_when_run_again(
    command: str,
    fastas: dict[str, Path],
    tiny: Model,
    tmp_path: Path,
    run: Callable[..., tuple[int, str, str]],
) -> None:
    if command == "train":
        words = f"train --virus {fastas['virus']} --other {fastas['other']} -o {tmp_path}/m/own"
        words += " --device cpu --force"
        write_tiny_model(tmp_path / "m", "own")
    else:
        words = f"models import own --models-dir {tmp_path}/m --dnabert-s {tiny.nucleotide}"
        words += f" --esm2 {tiny.protein} --classifier {tiny.classifier}"
    arguments = [*words.split(), "--window", "300"]
    stopped_on_a_slow_disk(arguments, signal.SIGINT, tmp_path, "own/.model.json")
    left = [path.name for path in (tmp_path / "m/own").rglob("*")]
    assert "classifier.safetensors" in left
    assert not [name for name in left if name.startswith(".") or name == "model.json"]
    assert list_models(tmp_path / "m") == list_models()
    code, _, err = run(*arguments)
    assert code == 0, err
    verify(resolve_model("own", tmp_path / "m"))


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("split PIPE -o NEW/out", signal.SIGTERM),
        ("train --virus PIPE --other PIPE -o NEW/out", signal.SIGTERM),
        ("evaluate --virus PIPE --other PIPE --model mini", signal.SIGINT),
        ("evaluate --virus PIPE --other PIPE --model mini --test-part", signal.SIGTERM),
    ],
)
def test_stopped_while_it_waits_for_its_input_exits_75_and_leaves_nothing(
    words: str, number: signal.Signals, tmp_path: Path
) -> None:
    pipe, temporary = tmp_path / "pipe", tmp_path / "temporary"
    os.mkfifo(pipe)
    temporary.mkdir()
    arguments = words.replace("PIPE", str(pipe)).replace("NEW", f"{tmp_path}/new").split()
    run = subprocess.Popen(
        [sys.executable, "-m", "virnucpro_core.cli", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    writer = None
    while writer is None:
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.05)
        with suppress(OSError):  # nobody reads yet
            writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    run.send_signal(number)
    assert f"stopped by {number.name}" in run.communicate(timeout=60)[1]
    os.close(writer)
    assert run.returncode == 75
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["pipe", "temporary"]


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
