"""The `virnucpro` command: parse, call, print."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from typer.exceptions import TyperException

from virnucpro_core.cli import stages
from virnucpro_core.cli.command import MODELS, RUN, Group
from virnucpro_core.errors import (
    ROOM,
    GpuMemoryError,
    InputError,
    StoppedError,
    VirNucProError,
    out_of_memory,
)
from virnucpro_core.files import blamed
from virnucpro_core.lab.commands import inspect, measure
from virnucpro_core.published import commands as models
from virnucpro_core.version import __version__

app = typer.Typer(
    cls=Group,
    help="Find viruses in short metagenomic contigs.",
    epilog="""
    virnucpro predict contigs.fa.gz -o results --model mini
    virnucpro models fetch virnucpro-500 --models-dir models --classifier 500_model.pth
    virnucpro predict contigs.fa.gz -o results --model virnucpro-500 --models-dir models
    virnucpro call results --preset conservative

    `virnucpro COMMAND --help` says more of each command.
    """,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "token_normalize_func": lambda name: "device" if name == "devices" else name,
    },
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(stages.app)
app.add_typer(models.app, name="models", rich_help_panel=MODELS)
app.add_typer(measure.app)
app.add_typer(inspect.app)
app.add_typer(inspect.settings, name="config", rich_help_panel=RUN)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"virnucpro {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)
_IN_THE_WAY = {
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}
_AGAIN = "nothing finished is lost, run the same command again"


class _Stopped(BaseException):
    """A signal came. No `except Exception` on its way holds it up, and every `finally` is run."""


_came: list[_Stopped] = []
"""The signal that stops this command, once it came: C code may have made another error of it."""


def _stop(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)  # a second one ends at once
    _came.append(_Stopped(signal.Signals(number).name))
    _raise(_came[0], frame)


def _raise(stopped: _Stopped, frame: FrameType | None) -> None:
    """Raise it where the program is, but behind an import: in one, torch's C++ would abort."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _raise_soon(stopped)
            return
        frame = frame.f_back
    raise stopped


def _raise_soon(stopped: _Stopped) -> None:
    signal.signal(signal.SIGALRM, lambda _, frame: _raise(stopped, frame))
    signal.setitimer(signal.ITIMER_REAL, 0.01)


def _stop_once_more(lost: sys.UnraisableHookArgs) -> None:
    """Let a signal come again that came in a callback of Python's own, which drops what is raised.

    Such are those of weak references, as imports use them.
    """
    if isinstance(lost.exc_value, _Stopped):
        _raise_soon(lost.exc_value)  # when the callback is over
    else:
        sys.__unraisablehook__(lost)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those it came of: a reader may have taken a lack of memory for a bad file."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _verdict(error: BaseException) -> tuple[str, int] | None:
    """One sentence and the exit code for an error; None for a fault of the program."""
    if isinstance(error, _Stopped):
        return f"stopped by {error}; {_AGAIN}.", StoppedError.exit_code
    told = isinstance(error, StoppedError | GpuMemoryError)  # whose sentence says more
    if any(out_of_memory(one) for one in _chain(error)) and not told:
        return f"memory ran out; {_AGAIN} with more memory.", StoppedError.exit_code
    if isinstance(error, VirNucProError):
        return str(error), error.exit_code
    if isinstance(error, BrokenPipeError):
        return "whoever read the output has gone.", 1
    if isinstance(error, OSError):
        path = error.filename2 or error.filename  # the second is the one that was asked for
        if error.errno in _IN_THE_WAY:
            return f"{path}: {error.strerror}; give another path.", InputError.exit_code
        return f"{path or 'the output'}: {error.strerror or error}; {_AGAIN}.", 1
    return None


def _tell(error: BaseException) -> int:
    """Say what an error is; its exit code. A fault of the program is raised again."""
    verdict = _verdict(_came[0] if _came else error)
    if verdict is None:
        raise error
    print(f"virnucpro: {verdict[0]}", file=sys.stderr)
    return verdict[1]


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command, that of the process by default; its exit code. A refusal is one sentence."""
    try:
        command = typer.main.get_command(app)
        code = command.main(arguments, prog_name="virnucpro", standalone_mode=False)
        with blamed(Path("stdout")):
            sys.stdout.flush()
    except TyperException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "virnucpro"
        message = error.format_message()
        end = "" if message.endswith((".", "?")) else "."
        print(f"{where}: {message}{end} See `{where} --help`.", file=sys.stderr)
        return 2
    except typer.Abort:
        return 1
    except (Exception, _Stopped) as error:
        code = _tell(error)
    return code if isinstance(code, int) else 0


_LIBRARIES = ("numpy", "pyarrow", "h5py", "torch")


class _Rehearsal(MetaPathFinder):
    """Loads libraries in another process first, whose end is told: without memory they abort."""

    def find_spec(self, name: str, *_: object) -> None:
        if name in _LIBRARIES:
            both = ", ".join([*sorted(sys.modules.keys() & _LIBRARIES), name])
            code = f"import mmap; room = mmap.mmap(-1, {ROOM}); import {both}"
            command = [sys.executable, "-c", code]
            if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
                raise MemoryError(f"no room for {name}")


def main() -> None:
    """Run the command line; a refusal is one sentence on stderr and its exit code.

    A signal that asks to stop gives exit code 75, in whatever command, and leaves no partial file.
    """
    sys.unraisablehook = _stop_once_more
    try:
        for number in _SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, _stop)  # nohup and `&` have some of them ignored
        if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
            sys.meta_path.insert(0, _Rehearsal())
        code = run()
        for number in (*_SIGNALS, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)  # nothing is left to be stopped
    except _Stopped as error:  # before it began, or as it told of its end
        code = _tell(error)
    with suppress(OSError):  # said already
        sys.stdout.flush()
    sys.stderr.flush()
    # the interpreter's own end may crash without memory, and takes up to a second with torch
    os._exit(code)
