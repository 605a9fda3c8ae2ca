"""Commands that look at results, inputs and the machine, and change none of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from virnucpro_core.errors import InputError
from virnucpro_core.files import keep_apart, written_aside

app = typer.Typer()

Json = Annotated[Path | None, typer.Option("--json", help="Write all figures here.")]


def _write(path: Path, record: dict[str, Any]) -> None:
    with written_aside(path) as aside:
        aside.write_text(json.dumps(record, indent=2) + "\n")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A folder of results, a contigs.tsv, or a table.")],
    b: Annotated[Path, typer.Argument(help="Another; geNomad's and VirSorter2's are known.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write all flipped contigs here, as TSV.")
    ] = None,
    json_file: Json = None,
    show: Annotated[int, typer.Option(min=0, help="Flipped contigs to print, at most.")] = 10,
    columns: Annotated[
        str | None,
        typer.Option(help="contig,score: what these columns are called in another tool's table."),
    ] = None,
    min_score: Annotated[
        float, typer.Option(help="With --columns: a virus has at least this score.")
    ] = 0.5,
) -> None:
    """Who agrees on what is a virus, which contigs flipped, and why."""
    from virnucpro_core.results import compare as compared
    from virnucpro_core.results.verdicts import read_verdicts

    names = columns.split(",") if columns is not None else None
    if names is not None and len(names) != 2:
        raise InputError("--columns: name two, as in --columns contig,score.")
    found = compared.compare(*(read_verdicts(path, names, min_score) for path in (a, b)))
    for file in (output, json_file):
        if file is not None:
            keep_apart(file, [found.a.path, found.b.path])
    about, flipped = compared.record(found), compared.flips(found)
    if output is not None:
        with written_aside(output) as aside:
            compared.write_flips(flipped, aside)
    if json_file is not None:
        _write(json_file, about)
    for line in compared.lines(about, flipped, show):
        typer.echo(line)
