"""Fixtures that several test modules use."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from sample import FASTA, Sample, viral
from tiny import ENDS, FAST, WINDOW, coding, fair_esm, save_dnabert_s, write_tiny_model

from virnucpro_core import cli
from virnucpro_core.embedding.engine import embed
from virnucpro_core.models.store import Model, resolve_model
from virnucpro_core.published.imports import import_model
from virnucpro_core.sequences.translate import translate

if not torch.cuda.is_available():
    # before anything imports triton: test_kernels.py runs it on the CPU
    os.environ["TRITON_INTERPRET"] = "1"

# In a shell's background (`make test &`) SIGINT is ignored, under nohup SIGHUP; the commands under
# test would inherit that, and never be stopped.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference outputs and data, which is not part of the repository."""
    beside = Path(__file__).parents[1].parent / "shared"
    folder = Path(os.environ.get("VIRNUCPRO_SHARED", beside))
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set VIRNUCPRO_SHARED to the reference data")
    return folder


@pytest.fixture(scope="session")
def data() -> Path:
    """Reference data that is part of the repository."""
    return DATA


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder that holds `tiny`, random weights of the real architectures."""
    root = tmp_path_factory.mktemp("models")
    write_tiny_model(root)
    return root


@pytest.fixture(scope="session")
def tiny(models_dir: Path) -> Model:
    return resolve_model("tiny", models_dir)


@pytest.fixture(scope="session")
def edge() -> Path:
    """44 contigs of lengths around every boundary, with the original's output beside it."""
    return DATA / "original" / "edge.fa"


@pytest.fixture(scope="session")
def edge_frames(edge: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stop-free frames of `edge`, for windows of the `tiny` model."""
    frames = tmp_path_factory.mktemp("edge") / "frames.parquet"
    translate([edge], frames, WINDOW)
    return frames


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    """Ten contigs of every call and reason, in pieces, with their embeddings."""
    return Sample(tmp_path, FASTA, viral, shard_bp=60)


@pytest.fixture(scope="session")
def shard(edge_frames: Path, tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embeddings of `edge_frames` with `tiny`."""
    path = tmp_path_factory.mktemp("shard") / "shard.h5"
    embed(edge_frames, path, tiny, devices="cpu")
    return path


@pytest.fixture(autouse=True)
def _no_handler_outlives_its_test() -> Iterator[None]:
    """A command that ran in this process logs to a stream that pytest closes."""
    yield
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run a command in this process: its exit code, stdout and stderr."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], logging.getLogger("virnucpro").level

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    yield run
    root.handlers[:] = handlers
    logging.getLogger("virnucpro").setLevel(level)


@pytest.fixture
def ask(run: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Run a command that succeeds: its stdout and stderr."""

    def ask(*arguments: object) -> str:
        code, out, err = run(*arguments)
        assert code == 0, err
        return out + err

    return ask


@pytest.fixture
def model(models_dir: Path) -> list[object]:
    return ["--model", "tiny", "--models-dir", models_dir]


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three contigs of one window each, which the embedders are quick with."""
    rng = np.random.default_rng(3)
    path = tmp_path_factory.mktemp("three") / "three.fa"
    texts = ("".join(rng.choice(["AC", "CA", "GC", "CC"], 150)) for _ in range(3))
    path.write_text("".join(f">c{n}\n{text}\n" for n, text in enumerate(texts)))
    return path


@pytest.fixture(scope="session")
def fastas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Forty contigs of 600 bases of each class, whose first frame has no stop codon."""
    rng = np.random.default_rng(0)
    paths = {}
    for kind, ends in ENDS.items():
        paths[kind] = tmp_path_factory.mktemp("fasta") / f"{kind}.fa"
        records = (f">{kind}_{n}.1#a\n{coding(rng, ends, 200)}\n" for n in range(40))
        paths[kind].write_text("".join(records))
    return paths


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads cost more than they give where all is tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with `pair`: encoders in published formats, imported without a classifier."""
    parts = tmp_path_factory.mktemp("parts")
    save_dnabert_s(parts / "DNABERT-S")
    esm2 = fair_esm(parts / "esm2_t2.pt", 2, 32, 4, torch.float32)
    root = tmp_path_factory.mktemp("store")
    import_model("pair", dnabert_s=parts / "DNABERT-S", esm2=esm2, models_dir=root, window=WINDOW)
    return root


@pytest.fixture(scope="module")
def pair(store: Path) -> Model:
    return resolve_model("pair", store)


@pytest.fixture(scope="module")
def shards(
    fastas: dict[str, Path], pair: Model, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The embeddings of `fastas`."""
    folder = tmp_path_factory.mktemp("shards")
    for kind, path in fastas.items():
        translate([path], folder / f"{kind}.parquet", WINDOW)
        embed(folder / f"{kind}.parquet", folder / f"{kind}.h5", pair, devices="cpu")
    return {kind: folder / f"{kind}.h5" for kind in fastas}


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test makes of this process's threads is undone."""
    for library in ("OMP", "OPENBLAS", "MKL", "RAYON"):
        monkeypatch.setenv(f"{library}_NUM_THREADS", "2")
    before = torch.get_num_threads(), pa.cpu_count()
    yield
    torch.set_num_threads(before[0])
    pa.set_cpu_count(before[1])


@pytest.fixture
def quick_training(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`train` in this process takes a second, on one thread: small steps thrash on shared cores."""
    monkeypatch.setattr("virnucpro_core.lab.recipe.Recipe.read", lambda path=None: FAST)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
