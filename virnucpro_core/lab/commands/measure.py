"""How good and how fast a model is, and how one is made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from virnucpro_core.cli.command import MEASURE, MODELS, commands
from virnucpro_core.cli.options import (
    Device,
    Devices,
    FrameTable,
    Json,
    ModelName,
    ModelsDir,
    Output,
    Precision,
    PrecisionOption,
)
from virnucpro_core.errors import InputError, VirNucProError
from virnucpro_core.files import locked, made, written_aside

app = typer.Typer()
modelling = commands(app, MODELS)
measuring = commands(app, MEASURE)

VirusFasta = Annotated[
    list[Path], typer.Option("--virus", help="FASTA of viruses; may be repeated.")
]
OtherFasta = Annotated[
    list[Path], typer.Option("--other", help="FASTA of all else; may be repeated.")
]
MoreVirus = Annotated[
    list[Path] | None, typer.Option(help="More FASTA of viruses, to train on alone.")
]
MoreOther = Annotated[
    list[Path] | None, typer.Option(help="More FASTA of all else, to train on alone.")
]


@contextmanager
def _json_into(path: Path | None) -> Iterator[dict[str, Any]]:
    """A dict that is written as JSON at the end, to a file that can be, which is found out now."""
    record: dict[str, Any] = {}
    with written_aside(path) if path is not None else nullcontext() as aside:
        yield record
        if aside is not None:
            aside.write_text(json.dumps(record, indent=2) + "\n")


@measuring(
    "virnucpro validate frames.parquet --model virnucpro-500 --models-dir models \\",
    "    --precision fp16 --against fp32",
)
def validate(
    frames: FrameTable,
    model: ModelName,
    precision: Annotated[Precision, typer.Option(help="The precision in question.")],
    against: Annotated[Precision, typer.Option(help="The reference.")] = "fp32",
    models_dir: ModelsDir = None,
    sample: Annotated[int, typer.Option(min=1, help="Frames to compare, at most.")] = 1000,
    device: Device = "auto",
    min_agreement: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The least share of frames called alike.")
    ] = 0.999,
    min_cosine: Annotated[
        float, typer.Option(min=-1.0, max=1.0, help="The least cosine, of any frame and encoder.")
    ] = 0.999,
    json_file: Json = None,
) -> None:
    """Compare a precision with another on a sample of frames; exit code 1 below the bar."""
    from virnucpro_core.embedding.devices import parse_devices
    from virnucpro_core.lab.validate import validate
    from virnucpro_core.models.store import resolve_model

    with _json_into(json_file) as record:
        outcome = validate(
            frames,
            resolve_model(model, models_dir),
            precision,
            against,
            device=parse_devices(device)[0],
            sample=sample,
            min_agreement=min_agreement,
            min_cosine=min_cosine,
        )
        record.update(outcome.record())
    typer.echo(str(outcome))
    if outcome.misses:
        raise VirNucProError(
            f"{model} in {precision} is below the bar: {'; '.join(outcome.misses)}."
        )


@measuring(
    "virnucpro benchmark -o figures",
    "virnucpro benchmark frames.parquet --section esm2 --section devices --device cuda:0,cuda:1",
)
def benchmark(
    frames: Annotated[
        list[Path] | None, typer.Argument(help="Frame tables: their lengths are timed as well.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the JSON and the plot.")
    ] = None,
    section: Annotated[
        list[str] | None, typer.Option(help="Only this part; may be repeated.", show_default="all")
    ] = None,
    device: Devices = "auto",
) -> None:
    """Time both encoders against this machine's limits, each line with its bar; needs no model."""
    from virnucpro_core.embedding.devices import parse_devices
    from virnucpro_core.lab.benchmark import benchmark

    places = parse_devices(device)
    benchmark(output, devices=places, sections=section, tables=frames or (), show=typer.echo)


@measuring("virnucpro profile frames.parquet --model mini --json profile.json")
def profile(
    frames: FrameTable,
    model: ModelName,
    models_dir: ModelsDir = None,
    device: Device = "auto",
    precision: PrecisionOption = None,
    json_file: Json = None,
) -> None:
    """Break one `embed` run into its stages and, on a GPU, its kernels and idle time."""
    from virnucpro_core.embedding.devices import default_precision, parse_devices
    from virnucpro_core.lab.profiling import lines, profile
    from virnucpro_core.models.store import resolve_model

    place = parse_devices(device)[0]
    chosen = precision or default_precision(place)
    with _json_into(json_file) as record:
        record.update(profile(frames, resolve_model(model, models_dir), place, chosen))
    for line in lines(record):
        typer.echo(line)


@modelling(
    "virnucpro train --virus viruses.fa --other others.fa -o models/own",
    "virnucpro train --virus viruses.gb --other others.gb --encoders virnucpro-500 \\",
    "    --models-dir models -o own",
)
def train(
    virus: VirusFasta,
    other: OtherFasta,
    output: Output,
    more_virus: MoreVirus = None,
    more_other: MoreOther = None,
    window: Annotated[
        int | None,
        typer.Option(min=3, help="Bases of a window.", show_default="500, or as the encoders take"),
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of everything random.")] = 0,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="Sizes and schedule, as TOML. With --encoders also 'original', as VirNucPro's "
            "authors trained.",
            show_default="those of mini",
        ),
    ] = None,
    device: Device = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="Replace the model that is there.")
    ] = False,
    encoders: Annotated[
        str | None,
        typer.Option(
            help="Train a classifier alone, on this model's encoders. --virus and --other then "
            "take GenBank files and shards of embed too."
        ),
    ] = None,
    models_dir: ModelsDir = None,
    precision: PrecisionOption = None,
    notes: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Markdown for the model's card: what it is for, its data and their licences.",
        ),
    ] = None,
) -> None:
    """Train a small model from labelled FASTA, as `mini` was, or a classifier on --encoders."""
    from virnucpro_core.embedding.devices import parse_devices
    from virnucpro_core.lab import head, train
    from virnucpro_core.lab import recipe as recipes
    from virnucpro_core.lab.card import NOTES
    from virnucpro_core.lab.train_head import train_head
    from virnucpro_core.models.store import models_folder, resolve_model

    place = str(parse_devices(device)[0])
    lender = None if encoders is None else resolve_model(encoders, models_dir)
    if lender is None:
        how = recipes.Recipe.read(recipe or recipes.MINI)
        if precision is not None:
            raise InputError("--precision is that of encoders; name them with --encoders.")
    else:
        head_recipe = head.HeadRecipe.read(recipe)
        if window not in (None, lender.window):
            raise InputError(f"--window {window}: {encoders} takes {lender.window}; leave it out.")
        root = models_folder(models_dir)
        if root is not None and output.name == str(output):  # a bare name is a model's
            output = root / output
    if (output / "model.json").exists() and not force:
        raise InputError(
            f"{output}: holds a model already; name another folder, or --force to replace it."
        )
    options: dict[str, Any] = {
        "more_virus": more_virus or [],
        "more_other": more_other or [],
        "seed": seed,
    }
    said = None if notes is None else notes.read_bytes()
    busy = f"{output}: another process works there; wait for it, or name another folder."
    with made(output), locked(output / ".lock", busy):
        if lender is None:
            options |= {"window": window or 500, "device": place, "recipe": how}
            record = train.train(virus, other, output, **options)
        else:
            options |= {"recipe": head_recipe, "devices": device, "precision": precision}
            record = train_head(virus, other, output, lender, **options)
        if said is not None:
            (output / NOTES).write_bytes(said)
    typer.echo(json.dumps(record.get("test", record["validation"]), indent=2))


@measuring(
    "virnucpro evaluate --virus viruses.fa --other others.fa --model mini -o figures",
    "virnucpro evaluate --virus viruses.fa --other others.fa --model mini \\",
    "    --table genomad=sample_virus_summary.tsv:seq_name,virus_score",
)
def evaluate(
    virus: VirusFasta,
    other: OtherFasta,
    model: ModelName,
    models_dir: ModelsDir = None,
    device: Device = "auto",
    table: Annotated[
        list[str] | None,
        typer.Option(
            help="Another tool's scores, NAME=FILE[:CONTIG,SCORE] (columns); may be repeated."
        ),
    ] = None,
    test_part: Annotated[
        bool, typer.Option("--test-part", help="Cut contigs from the groups that `train` held out.")
    ] = False,
    bins: Annotated[
        str, typer.Option(help="Lengths of contigs at which rows by length begin.")
    ] = "300,500,1000,3000",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for table, JSON and pictures.")
    ] = None,
) -> None:
    """Measure a model, and other tools' scores, on labelled FASTA: by length, kind and window."""
    from virnucpro_core.embedding.devices import parse_devices
    from virnucpro_core.lab.evaluate import bins_of, measure, shown
    from virnucpro_core.lab.heldout import Labelled
    from virnucpro_core.lab.othertool import Table
    from virnucpro_core.models.store import resolve_model

    place, chosen = parse_devices(device)[0], resolve_model(model, models_dir)
    edges, tables = bins_of(bins), [Table.read(given) for given in table or []]
    sample = Labelled.test_part(virus, other) if test_part else Labelled.read(virus, other)
    for line in shown(measure(chosen, sample, tables, edges, place, output)):
        typer.echo(line)
