"""`virnucpro config`: the settings that a run would have."""

from __future__ import annotations

from typing import cast

import typer

from virnucpro_core.cli.command import RUN, SETTINGS, Group, as_plain, commands
from virnucpro_core.cli.configuration import known_keys
from virnucpro_core.cli.options import CALLS
from virnucpro_core.results.criteria import Asked, check

app = typer.Typer(cls=Group, help="Show the settings of a run.")
command = commands(app, RUN)


@command(
    "virnucpro config show",
    "virnucpro config show --config run.yaml --set embedding.precision=bf16",
    "virnucpro config show > run.yaml",
)
def show(context: typer.Context) -> None:
    """Print every setting with its value and where that comes from, as YAML for --config."""
    import yaml

    rows, calls = [], {}
    for key, option in known_keys(context).items():
        setting = context.meta[SETTINGS].get(key)
        value = (
            option.process_value(context, setting.text) if setting else option.get_default(context)
        )
        if option.rich_help_panel == CALLS:
            calls[option.name] = value
        line = yaml.safe_dump({key: as_plain(value)}, width=float("inf")).strip()
        said = option.show_default
        why = f" ({said})" if isinstance(said, str) and said != value else ""
        rows.append((line, setting.source if setting else f"default{why}"))
    check(**cast(Asked, calls))
    width = max(len(line) for line, _ in rows)
    for line, source in rows:
        typer.echo(f"{line:{width}}  # {source}")
