"""What every command has: help by groups, the options that all share, a configuration."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from virnucpro_core.cli.configuration import Setting, keys_of, put_out, settings
from virnucpro_core.cli.options import RUNNING, Decorator, option_in
from virnucpro_core.host import cores

RUN, STAGES, MODELS, MEASURE = "Run", "Stages", "Models", "Measure"
_EVERYWHERE = "Every command"
_GIVEN = "virnucpro.given"
CONFIGURATION, SETTINGS = "virnucpro.configuration", "virnucpro.settings"
"""In a context's `meta`: the value of each key of the command, and from where; what was set."""

_everywhere, _setting = map(option_in, (_EVERYWHERE, "Settings"))


def _shared(
    threads: Annotated[
        int | None,
        option_in(RUNNING)(
            "Threads of this process on the CPU.", min=1, max=1024, show_default="one a core"
        ),
    ] = None,
    config: Annotated[Path | None, _setting("A YAML file of them; see docs/usage.md.")] = None,
    set_: Annotated[
        list[str] | None,
        _setting(
            "One, over those of file and environment; may be repeated.",
            "--set",
            metavar="KEY=VALUE",
        ),
    ] = None,
    verbose: Annotated[
        int,
        _everywhere(
            "Say more; twice, libraries too.", "--verbose", "-v", count=True, show_default=False
        ),
    ] = 0,
    quiet: Annotated[
        int,
        _everywhere(
            "Say warnings alone; twice, errors.", "--quiet", "-q", count=True, show_default=False
        ),
    ] = 0,
) -> None:
    """Options that commands take before their name and behind it."""


def _parameters() -> list[Any]:
    app = typer.Typer(add_completion=False)
    app.command()(_shared)
    return list(typer.main.get_command(app).params)


SHARED = _parameters()


def _speak(steps: int) -> None:
    """Log to stderr, by so many steps more or less than what is done."""
    level = min(logging.ERROR, max(logging.DEBUG, logging.INFO - 10 * steps))
    logging.basicConfig(
        level=logging.DEBUG if steps > 1 else max(logging.WARNING, level),
        format="%(name)s: %(message)s",
        force=True,
    )
    logging.getLogger("virnucpro").setLevel(level)


def use_threads(count: int) -> None:
    """Compute on so many threads in this process; libraries read the environment as they load."""
    for library in ("OMP", "OPENBLAS", "MKL", "RAYON"):
        os.environ[f"{library}_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].set_cpu_count(count)


def _styled(text: str, **style: Any) -> str:
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else typer.style(text, **style)


def _row(one: Any) -> tuple[str, str]:
    """The names of an option or argument, and what is said of it."""
    value = one.metavar or f"<{one.name.upper()}>"
    if one.param_type_name == "argument":
        names = value + "..." * (one.nargs == -1)
    else:
        names = ", ".join(sorted(one.opts, key=len))
        names += "" if one.is_flag or one.count else f" {value}"
    choices = one.type_descriptor.choices
    default = one.show_default if isinstance(one.show_default, str) else one.default
    notes = [f"one of {', '.join(choices)}"] if choices else []
    if one.required:
        notes.append("required")
    elif one.show_default and default is not None and default is not False:  # 0 is told
        notes.append(f"default: {default}")
    return names, one.help + (f"  [{'; '.join(notes)}]" if notes else "")


class _Help:
    """Commands and options by their panels, in whole sentences, and examples of their use."""

    def format_options(self: Any, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, one in getattr(self, "commands", {}).items():
            text = inspect.cleandoc(one.help).partition("\n\n")[0].replace("\n", " ")
            panels.setdefault(one.rich_help_panel or "Commands", []).append((name, text))
        for one in self.get_params(ctx):
            panel = "Arguments" if one.param_type_name == "argument" else one.rich_help_panel
            panel = panel or (_EVERYWHERE if one.name == "help" else "Options")
            panels.setdefault(panel, []).append(_row(one))
        for panel, rows in panels.items():
            with formatter.section(_styled(panel, bold=True)):
                formatter.write_dl([(_styled(name, fg="cyan"), text) for name, text in rows])

    def format_epilog(self: Any, ctx: Any, formatter: Any) -> None:
        if self.epilog:
            with formatter.section(_styled("Examples", bold=True)):
                for line in inspect.cleandoc(self.epilog).splitlines():
                    formatter.write(f"  {line}".rstrip() + "\n")


def _typed(command: Any, context: typer.Context, words: list[str]) -> dict[str, Any]:
    """Options on the command line as text; shared ones join those before the command's name."""
    typed: dict[str, Any] = command.make_parser(context).parse_args(args=list(words))[0]
    typed = {name: value for name, value in typed.items() if value not in (None, ())}
    given = context.meta.setdefault(_GIVEN, {"verbose": 0, "quiet": 0, "set_": []})
    for one in SHARED:
        if one.name in typed:
            more = typed[one.name]
            given[one.name] = given[one.name] + more if one.count or one.multiple else more
    return typed


def as_plain(value: Any) -> Any:
    """A value as JSON and YAML have it."""
    return str(value) if isinstance(value, Path) else value


def _without_shared(context: Any, rest: list[str]) -> list[str]:
    for one in SHARED:
        context.params.pop(one.name, None)  # commands don't take them
    return rest


class Command(_Help, TyperCommand):
    """A command of ours. Those of a run, of the panels RUN and STAGES, are configured."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.configured = self.rich_help_panel in (RUN, STAGES)
        lacking = () if self.configured else ("config", "set_")
        self.params += [one for one in SHARED if one.name not in lacking]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [one for one in self.get_params(ctx) if one.param_type_name == "argument"]
        names = [(one.required, _row(one)[0]) for one in arguments]
        return ["[OPTIONS]", *(name if required else f"[{name}]" for required, name in names)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take what the command line lacks from the configuration, as defaults."""
        typed = {} if ctx.resilient_parsing else _typed(self, ctx, args)
        if ctx.resilient_parsing or "help" in typed:
            return super().parse_args(ctx, args)
        given = ctx.meta[_GIVEN]
        _speak(given["verbose"] - given["quiet"])
        found: dict[str, Setting] = {}
        if self.configured:
            file = Path(given["config"]) if "config" in given else None
            found = put_out(settings(ctx, file, given["set_"]), typed)
        elif "config" in given or given["set_"]:
            ctx.fail("--config and --set are for the commands of a run; leave them out.")
        if "threads" in given:  # before the command's name too
            found["threads"] = Setting(given["threads"], "--threads")
        own = keys_of(self)
        ctx.default_map = {own[key].name: one.text for key, one in found.items() if key in own}
        rest = super().parse_args(ctx, args)
        if ctx.params["threads"] or cores() < len(os.sched_getaffinity(0)):
            use_threads(ctx.params["threads"] or cores())
        sources = {key: one.source for key, one in found.items()}
        sources |= {key: one.opts[0] for key, one in own.items() if one.name in typed}
        ctx.meta[SETTINGS] = found
        ctx.meta[CONFIGURATION] = {
            key: {"value": as_plain(ctx.params[one.name]), "from": sources.get(key, "default")}
            for key, one in own.items()
        }
        return _without_shared(ctx, rest)


class Group(_Help, TyperGroup):
    """Commands of ours. Alone, it prints its help and exits with 2, as uv does."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params += SHARED

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help(), err=True)
            raise typer.Exit(2)
        if not ctx.resilient_parsing:
            _typed(self, ctx, args)
        return _without_shared(ctx, super().parse_args(ctx, args))


def commands(app: typer.Typer, panel: str) -> Callable[..., Decorator]:
    """How to add commands of a panel: `@command("an example", …, name=…)`."""

    def command(*examples: str, name: str | None = None) -> Decorator:
        return app.command(name, cls=Command, rich_help_panel=panel, epilog="\n".join(examples))

    return command
