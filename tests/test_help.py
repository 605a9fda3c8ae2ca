"""What a person meets before any work: help, completion, and how much is said."""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import typer
from test_cli import virnucpro
from test_options import Run, commands, sees

from virnucpro_core import cli
from virnucpro_core.models import store

COMMANDS = dict(commands(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("words", [[], ["models"], ["config"]])
def test_a_group_alone_prints_its_help_on_stderr_and_exits_2(words: list[str], run: Run) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err == run(*words, "--help")[1]


def test_help_names_every_command_in_its_group(run: Run) -> None:
    code, out, _ = run("-h")
    assert code == 0
    groups = re.findall(r"^(\w[\w ]*):\n((?:  .*\n)+)", out, re.MULTILINE)
    found = {name: re.findall(r"^  (\w+)  ", text, re.MULTILINE) for name, text in groups}
    assert {name: found[name] for name in ("Run", "Stages", "Models", "Measure")} == {
        "Run": ["predict", "call", "estimate", "config"],
        "Stages": ["split", "translate", "embed", "merge", "classify", "report"],
        "Models": ["models", "train"],
        "Measure": ["validate", "benchmark", "profile", "evaluate", "compare", "doctor"],
    }
    assert "Examples" in dict(groups)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_is_whole(name: str, run: Run) -> None:
    code, out, _ = run(*name.split(), "-h")
    assert code == 0
    assert not re.search(r"\w\.\.\.", out), "a sentence is cut"
    command = COMMANDS[name]
    assert " ".join(command.help.partition("\n\n")[0].split()) in " ".join(out.split())
    for option in command.params:
        assert option.help.endswith("."), option.name
        if option.show_default is True and option.default not in (None, False):
            assert f"default: {option.default}]" in " ".join(out.split())
        assert option.opts[-1] in out or f"<{option.name.upper()}>" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_of_a_command_are_of_options_that_it_has(name: str) -> None:
    text = (COMMANDS[name].epilog or "").replace("\\\n", " ")
    lines = re.findall(r"(?<!`)virnucpro (.*?)(?: > .*)?$", text, re.MULTILINE)
    assert lines or name in ("models", "config")
    for line in lines:
        words = shlex.split(line)
        own = " ".join(words[:2]) if words[0] in ("models", "config") else words[0]
        assert not name or own == name
        parser = COMMANDS[own].make_parser(typer.Context(COMMANDS[own], info_name=own))
        given = parser.parse_args(args=words[len(own.split()) :])[0]
        lacking = {one.name for one in COMMANDS[own].params if one.required} - given.keys()
        assert lacking <= ({"model"} if "--config" in words else set())


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_help_is_plain_where_colours_are_not_wanted(
    variable: str, value: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer._click.utils.should_strip_ansi", lambda *_: False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[" in run("-h")[1]
    monkeypatch.setenv(variable, value)
    assert "\x1b[" not in run("-h")[1]


def test_help_says_a_default_of_zero(run: Run) -> None:
    assert "shorter contigs get no call. [default: 0]" in " ".join(run("call", "-h")[1].split())


def test_the_package_runs_as_a_module() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "virnucpro_core", "--version"], capture_output=True, check=True
    )
    assert run.stdout.startswith(b"virnucpro ")


def test_device_has_one_name_in_the_help_and_an_older_one_that_works(run: Run) -> None:
    assert "--devices" not in run("predict", "-h")[1]
    code, _, err = run("predict", "a.fa", "-o", "o", "--model", "mini", "--devices", "tpu")
    assert code == 2
    assert "'tpu' is not" in err


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("virnucpro pre", "predict"),
        ("virnucpro models ver", "verify"),
        ("virnucpro predict --prec", "--precision"),
        ("virnucpro predict --precision b", "bf16"),
        ("virnucpro predict --model mi", "mini"),
        ("virnucpro predict --genetic-code 1 --model virnucpro-5", "virnucpro-500"),
    ],
)
@sees("", "--show-completion", "--install-completion")
def test_completion_offers_what_there_is_without_torch(line: str, offered: str) -> None:
    words = len(line.split()) - 1
    env = {**os.environ, "_VIRNUCPRO_COMPLETE": "complete_bash"}
    env |= {"COMP_WORDS": line, "COMP_CWORD": str(words), "PYTHONVERBOSE": ""}
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
        "from virnucpro_core.cli import main\nmain()"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [offered]
    assert run.stderr == "False\n"


def test_completion_is_shown_and_installed_for_a_shell(tmp_path: Path) -> None:
    """The shell is the process above, as it is for a person."""
    bash = '; virnucpro() { %s -m virnucpro_core "$@"; }; virnucpro --%s-completion; true'
    env = {**os.environ, "HOME": str(tmp_path)}
    said = {
        what: subprocess.run(
            ["bash", "-c", "true" + bash % (sys.executable, what)],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for what in ("show", "install")
    }
    assert "_VIRNUCPRO_COMPLETE=complete_bash" in said["show"]
    assert "completion installed" in said["install"]
    assert (tmp_path / ".bashrc").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], {"info", "warning", "error"}),
        (["-v"], {"debug", "info", "warning", "error"}),
        (["-vv"], {"debug", "info", "warning", "error", "of a library"}),
        (["-q"], {"warning", "error"}),
        (["-qq"], {"error"}),
        (["-q", "-v"], {"info", "warning", "error"}),
    ],
)
@pytest.mark.parametrize("where", ["before", "behind", "parted"])
@sees("", "--verbose", "--quiet")
def test_verbose_and_quiet_say_more_and_less(
    options: list[str], said: set[str], where: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def list_models(_: object) -> list[object]:
        ours = logging.getLogger("virnucpro.test")
        for level in ("debug", "info", "warning", "error"):
            getattr(ours, level)(level)
        logging.getLogger("library").info("of a library")
        return []

    monkeypatch.setattr(store, "list_models", list_models)
    before = {"before": options, "behind": [], "parted": options[:1]}[where]
    behind = options[len(before) :]
    code, _, err = run(*before, "models", "list", *behind)
    assert code == 0
    assert {line.partition(": ")[2] for line in err.splitlines()} == said


@pytest.mark.parametrize(
    ("command", "usage"),
    [("predict", "[OPTIONS] <FASTA>..."), ("compare", "[OPTIONS] <A> <B>"), ("train", "[OPTIONS]")],
)
def test_usage_names_arguments_as_the_list_of_them_does(command: str, usage: str, run: Run) -> None:
    lines = run(command, "--help")[1].splitlines()
    assert lines[0] == f"Usage: virnucpro {command} {usage}"
    for argument in usage.split()[1:]:
        assert any(line.startswith(f"  {argument} ") for line in lines)


@pytest.mark.parametrize("place", ["before", "behind"])
@sees("", "--threads")
def test_threads_are_those_that_libraries_compute_on(place: str, three: Path) -> None:
    words = ["estimate", str(three), "--model", "mini"]
    words = ["--threads", "1", *words] if place == "before" else [*words, "--threads", "1"]
    code = (
        "from virnucpro_core import cli\n"
        f"assert cli.run({words}) == 0\n"
        "import os, pyarrow, torch\n"
        "print(torch.get_num_threads(), pyarrow.cpu_count(), os.environ['OPENBLAS_NUM_THREADS'])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "1 1 1"
    assert "1 CPU cores" in run.stdout


@pytest.mark.usefixtures("threads")
def test_threads_of_libraries_that_are_loaded_change_too(run: Run) -> None:
    assert run("models", "list", "--threads", 3)[0] == 0
    assert (torch.get_num_threads(), pa.cpu_count()) == (3, 3)
    assert run("models", "list", "--threads", 0)[0] == 2
    assert run("models", "list", "--threads", 10**8)[0] == 2, (
        "the kernel would be at that for hours"
    )


@pytest.mark.usefixtures("threads")
def test_threads_are_by_default_what_the_control_group_allows(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr("virnucpro_core.host.cpu_quota", lambda: 2.5)
    assert run("models", "list")[0] == 0
    assert (torch.get_num_threads(), pa.cpu_count()) == (3, 3)


@pytest.mark.usefixtures("threads")
def test_embed_on_many_threads_says_that_processes_are_faster(
    run: Run, model: list[object], edge_frames: Path, tmp_path: Path
) -> None:
    words = ["embed", edge_frames, *model, "--device", "cpu"]
    assert "--device cpu,cpu\n" in run(*words, "-o", tmp_path / "a.h5", "--threads", 9)[2]
    assert "faster" not in run(*words, "-o", tmp_path / "b.h5", "--threads", 8)[2]


def test_help_of_a_terminal_s_width_is_no_wider_than_it() -> None:
    run = virnucpro("predict", "--help")
    examples = run.stdout.index("Examples")
    assert max(map(len, run.stdout[:examples].splitlines())) <= 80
