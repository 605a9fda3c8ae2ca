"""Commands that a signal ends: exit code 75, a sentence, no partial file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from tiny import write_tiny_model

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


def assert_stopped(code: str) -> None:
    """A script that gets a SIGTERM ends with one sentence and 75."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 75
    assert run.stderr.startswith("virnucpro: stopped by SIGTERM; nothing finished is lost")
    assert len(run.stderr.splitlines()) == 1


def test_stopped_while_its_options_are_put_together_exits_75() -> None:
    code = """
import os, signal, typer.main
from virnucpro_core import cli
assemble = typer.main.get_command
def assembled(app):
    os.kill(os.getpid(), signal.SIGTERM)
    return assemble(app)
typer.main.get_command = assembled
cli.main()
"""
    assert_stopped(code)


@pytest.mark.parametrize("place", ["cli.run", "cli.resource.getrlimit", "cli._tell"])
def test_stopped_before_it_begins_or_as_it_ends_exits_75(place: str) -> None:
    code = f"""
import os, signal
from virnucpro_core import cli
real = {place}
def stopped(*given):
    {place} = real
    os.kill(os.getpid(), signal.SIGTERM)
    return 0
{place} = stopped
cli.sys.argv[1:] = ["predict", "gone.fa", "-o", "out", "--model", "none"]
cli.main()
"""
    assert_stopped(code)


def test_stopped_within_a_callback_that_drops_what_is_raised_exits_75() -> None:
    code = """
import os, signal, time, typer.main, weakref
from virnucpro_core import cli
assemble = typer.main.get_command
class Thing:
    pass
def assembled(app):
    thing = Thing()
    watched = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    del thing
    time.sleep(20)
    return assemble(app)
typer.main.get_command = assembled
cli.main()
"""
    assert_stopped(code)


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


def test_signal_in_an_import_stops_behind_it(tmp_path: Path) -> None:
    """torch's C++ calls Python as it is loaded, and aborts at an exception in there."""
    (tmp_path / "loading.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nwhole = list(range(100_000))\n"
    )
    (tmp_path / "command.py").write_text(
        "import signal, time\n"
        "from virnucpro_core import cli\n"
        "signal.signal(signal.SIGTERM, cli._stop)\n"
        "try:\n    import loading\n    time.sleep(60)\n"
        "except cli._Stopped as error:\n    print(error, len(loading.whole))\n"
    )
    run = subprocess.run([sys.executable, tmp_path / "command.py"], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("SIGTERM 100000\n", "")


def test_signal_of_which_c_code_made_another_error_is_a_stop(edge: Path, tmp_path: Path) -> None:
    """As torch does: "could not determine the shape of object type"."""
    (tmp_path / "command.py").write_text(
        "import os, signal, sys\n"
        "from virnucpro_core import cli, inputs\n"
        "from virnucpro_core.sequences import split\n"
        "def identify(paths):\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except BaseException:\n        raise inputs.InputError('is damaged') from None\n"
        "split.identify = identify\n"
        "cli.main()\n"
    )
    words = ["split", str(edge), "-o", str(tmp_path / "out")]
    run = subprocess.run(
        [sys.executable, tmp_path / "command.py", *words], capture_output=True, text=True
    )
    assert run.returncode == 75, run.stderr
    assert run.stderr.splitlines()[-1].startswith("virnucpro: stopped by SIGTERM; ")
