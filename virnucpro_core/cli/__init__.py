"""The `virnucpro` command: parse, call, print."""

from __future__ import annotations

import gc
import logging
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from virnucpro_core import __version__
from virnucpro_core.cli import measure, models, stages
from virnucpro_core.errors import VirNucProError

app = typer.Typer(
    help="Find viruses in short metagenomic contigs.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(stages.app)
app.add_typer(measure.app)
app.add_typer(models.app, name="models")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"virnucpro {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", force=True)
    logging.getLogger("virnucpro").setLevel(logging.DEBUG if verbose else logging.INFO)


def main() -> None:
    """Run the command line; a refusal is one sentence on stderr and its exit code."""
    command = typer.main.get_command(app)
    try:
        code = command.main(prog_name="virnucpro", standalone_mode=False)
    except VirNucProError as error:
        print(f"virnucpro: {error}", file=sys.stderr)
        code = error.exit_code
    except TyperException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "virnucpro"
        message = error.format_message()
        end = "" if message.endswith((".", "?")) else "."
        print(f"{where}: {message}{end} See `{where} --help`.", file=sys.stderr)
        code = 2
    except typer.Abort:
        code = 1
    except (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        path = error.filename2 or error.filename  # the second is the one that was asked for
        print(f"virnucpro: {path}: {error.strerror}; give another path.", file=sys.stderr)
        code = 2
    except OSError as error:
        print(f"virnucpro: {error}", file=sys.stderr)
        code = 1
    gc.freeze()  # at exit the collector would go through all of torch again, for 0.3 s
    sys.exit(code if isinstance(code, int) else 0)
