"""Commands that look at results, inputs, settings and the machine, and change none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from virnucpro_core.cli import stdin
from virnucpro_core.cli.command import MEASURE, MODELS, RUN, SETTINGS, Group, as_plain, commands
from virnucpro_core.cli.configuration import known_keys
from virnucpro_core.cli.options import (
    CALLS,
    Devices,
    Fasta,
    GeneticCode,
    Json,
    ModelName,
    ModelsDir,
    PrecisionOption,
)
from virnucpro_core.errors import InputError, VirNucProError
from virnucpro_core.files import keep_apart, write_json, written_aside
from virnucpro_core.published import commands as models
from virnucpro_core.results.criteria import Asked, check

app = typer.Typer()
settings = typer.Typer(cls=Group, help="Show the settings of a run.")
run = commands(app, RUN)
measuring = commands(app, MEASURE)


@measuring(
    "virnucpro compare before after -o flips.tsv",
    "virnucpro compare results sample_virus_summary.tsv",
)
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
    """Tell where two results agree on what is a virus, which contigs flipped, and why."""
    from virnucpro_core.lab import compare as compared
    from virnucpro_core.lab.verdicts import read_verdicts

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
        write_json(json_file, about)
    for line in compared.lines(about, flipped, show):
        typer.echo(line)


@run(
    "virnucpro estimate contigs.fa.gz --model virnucpro-500",
    "virnucpro estimate contigs.fa.gz --model virnucpro-500 --device-class h100,t4",
)
def estimate(
    fasta: Fasta,
    model: ModelName,
    models_dir: ModelsDir = None,
    device: Devices = "auto",
    precision: PrecisionOption = None,
    genetic_code: GeneticCode = "1",
    device_class: Annotated[
        str, typer.Option(help="GPUs to estimate for as well: all, none, or such as h100,t4.")
    ] = "all",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where results would go; nothing is written.")
    ] = Path(),
    json_file: Json = None,
) -> None:
    """Tell what `predict` will take: windows, frames, tokens, time, memory and disk."""
    from virnucpro_core.embedding.devices import parse_devices
    from virnucpro_core.estimate import estimate
    from virnucpro_core.lab.estimate import amount_of, elsewhere, record, sizes_by_name
    from virnucpro_core.sequences.pace import FLOPS

    places = parse_devices(device)
    fasta = stdin.named(fasta, output)
    gpus = [name for name in FLOPS if name != "cpu"]
    classes = {"all": gpus, "none": []}.get(device_class, device_class.split(","))
    if odd := set(classes) - set(gpus):
        raise InputError(f"--device-class {min(odd)!r}: choose of {', '.join(gpus)}.")
    sizes = sizes_by_name(model, models_dir)
    amount = amount_of(fasta, sizes.window, code=genetic_code, runs=sizes.runs)
    found = estimate(amount, sizes, places, output, precision=precision)
    others = elsewhere(amount, sizes, precision, classes)
    if json_file is not None:
        keep_apart(json_file, fasta)
        write_json(json_file, record(found, others))
    for line in (*found.lines(), *others):
        typer.echo(line)


@measuring("virnucpro doctor --models-dir models -o results")
def doctor(
    models_dir: ModelsDir = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where results would go: its disk and its locks.")
    ] = Path(),
) -> None:
    """Tell what this machine can do and what is missing; exit code 1 where `predict` cannot run."""
    from virnucpro_core.lab.doctor import MISSING, examine

    lacking = []
    for finding in examine(models_dir, output):
        typer.echo(finding)
        if finding.state == MISSING:
            lacking.append(finding.what)
    if lacking:
        raise VirNucProError(f"predict cannot run here: see {', '.join(dict.fromkeys(lacking))}.")


@commands(models.app, MODELS)("virnucpro models card mini", name="card")
def models_card(
    name: Annotated[str, typer.Argument(help="The name of a model.")], models_dir: ModelsDir = None
) -> None:
    """A model's card, as Markdown: its parts, figures, recipe, and the notes of who made it."""
    from virnucpro_core.lab.card import card
    from virnucpro_core.models.store import resolve_model

    typer.echo(card(resolve_model(name, models_dir)), nl=False)


@commands(settings, RUN)(
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
