"""`virnucpro models`: the models at hand. Imports the rest of this room when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from virnucpro_core.cli.command import MODELS, Group, commands
from virnucpro_core.cli.options import ModelsDir

app = typer.Typer(cls=Group, help="List, fetch, import and verify models.")
command = commands(app, MODELS)


@command("virnucpro models list --models-dir models", name="list")
def models_list(models_dir: ModelsDir = None) -> None:
    """List the models at hand, and those that can be fetched."""
    from rich.console import Console
    from rich.table import Table

    from virnucpro_core.models.store import CLASSIFIER, PUBLISHED_WINDOWS, list_models

    table = Table("model", "window", "values a frame", "encoders", "folder")
    models = list_models(models_dir)
    for model in models:
        encoders = model.lender.name if model.lender else "its own"
        if CLASSIFIER not in model.weights:
            encoders = "alone"
        table.add_row(model.name, str(model.window), str(model.dim), encoders, str(model.folder))
    for name in sorted(PUBLISHED_WINDOWS.keys() - {model.name for model in models}):
        row = (str(PUBLISHED_WINDOWS[name]), "3328", "its own")
        table.add_row(name, *row, f"not here: virnucpro models fetch {name}")
    Console().print(table)


@command(
    "virnucpro models fetch virnucpro-500 --models-dir models --classifier 500_model.pth",
    name="fetch",
)
def models_fetch(
    name: Annotated[str, typer.Argument(help="virnucpro-300 or virnucpro-500.")],
    classifier: Annotated[
        str | None, typer.Option(help="The original's .pth: a path or a URL.")
    ] = None,
    models_dir: ModelsDir = None,
    dnabert_s_revision: Annotated[
        str, typer.Option(help="A branch, tag or commit of DNABERT-S.")
    ] = "main",
    esm2_revision: Annotated[str, typer.Option(help="A branch, tag or commit of ESM-2.")] = "main",
) -> None:
    """Fetch a published model into the models folder, checked and hashed."""
    from virnucpro_core.published.fetch import fetch_model

    model = fetch_model(
        name,
        classifier=classifier,
        models_dir=models_dir,
        dnabert_s_revision=dnabert_s_revision,
        esm2_revision=esm2_revision,
    )
    typer.echo(f"{model.name}: windows of {model.window}, in {model.folder}")


@command(
    "virnucpro models import virnucpro-500 --dnabert-s DNABERT-S --esm2 esm2_t36_3B_UR50D.pt \\",
    "    --classifier 500_model.pth --models-dir models",
    name="import",
)
def models_import(
    name: Annotated[str, typer.Argument(help="virnucpro-300, virnucpro-500, or one of yours.")],
    dnabert_s: Annotated[
        Path, typer.Option(help="A folder with config.json, tokenizer.json, weights.")
    ],
    esm2: Annotated[Path, typer.Option(help="fair-esm's .pt, or a Hugging Face folder.")],
    classifier: Annotated[
        Path | None,
        typer.Option(help="The original's .pth, or safetensors; without, encoders to train on."),
    ] = None,
    models_dir: ModelsDir = None,
    window: Annotated[int | None, typer.Option(min=3, help="Bases of a window.")] = None,
) -> None:
    """Bring a model's parts into the models folder, checked and hashed."""
    from virnucpro_core.published.imports import import_model

    model = import_model(
        name,
        dnabert_s=dnabert_s,
        esm2=esm2,
        classifier=classifier,
        models_dir=models_dir,
        window=window,
    )
    typer.echo(f"{model.name}: windows of {model.window}, in {model.folder}")


@command("virnucpro models verify virnucpro-500 --models-dir models", name="verify")
def models_verify(
    name: Annotated[str, typer.Argument(help="The name of a model.")], models_dir: ModelsDir = None
) -> None:
    """Compare a model's files with their recorded sha256."""
    from virnucpro_core.models.store import resolve_model, verify

    model = resolve_model(name, models_dir)
    verify(model)
    typer.echo(f"{model.name}: {len(model.weights)} files are as recorded")
