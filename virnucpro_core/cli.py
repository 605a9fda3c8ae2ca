"""The `virnucpro` command: parse, call, print."""

from __future__ import annotations

import json
import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import TyperException

from virnucpro_core import __version__
from virnucpro_core.errors import InputError, VirNucProError

app = typer.Typer(
    help="Find viruses in short metagenomic contigs.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
models_app = typer.Typer(help="The models at hand.")
app.add_typer(models_app, name="models")


class Precision(StrEnum):
    """Number format of the encoders' weights and activations."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    fp8 = "fp8"


Fasta = Annotated[list[Path], typer.Argument(help="FASTA files; .gz .bz2 .xz .zst are read too.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the result goes.")]
ModelName = Annotated[str, typer.Option("--model", help="mini, virnucpro-300 or virnucpro-500.")]
ModelsDir = Annotated[
    Path | None,
    typer.Option(help="Folder of models; else $VIRNUCPRO_MODELS. mini needs none."),
]
Devices = Annotated[str, typer.Option(help="auto, cpu, or a list like cuda:0,cuda:1.")]
PrecisionOption = Annotated[
    Precision | None, typer.Option(help="Default: fp32 on CPU, fp16 on CUDA.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Run fp8 even where no validation was passed.")
]
Frames = Annotated[list[Path], typer.Option("--frames", help="Frame table; repeat for several.")]
ShardBp = Annotated[int, typer.Option(min=1, help="Bases of a piece, about.")]
MinViralFraction = Annotated[
    float,
    typer.Option(min=0.0, max=1.0, help="Share of a contig's windows that makes it a virus."),
]


@app.command()
def predict(
    fasta: Fasta,
    output: Output,
    model: ModelName,
    models_dir: ModelsDir = None,
    devices: Devices = "auto",
    precision: PrecisionOption = None,
    force: Force = False,
    min_viral_fraction: MinViralFraction = 0.5,
) -> None:
    """Call the contigs of a FASTA, all stages at once; run again after a kill, it goes on."""
    from virnucpro_core.predict import predict

    table = predict(
        fasta,
        model,
        output=output,
        models_dir=models_dir,
        devices=devices,
        precision=precision,
        force=force,
        min_viral_fraction=min_viral_fraction,
    )
    calls = table["call"].to_pylist()
    counts = ", ".join(f"{calls.count(c)} {c}" for c in ("virus", "other", "no_call"))
    typer.echo(f"{len(calls)} contigs: {counts}; see {output / 'report.html'}")


@app.command()
def split(fasta: Fasta, output: Output, shard_bp: ShardBp = 10_000_000) -> None:
    """Cut FASTA into pieces of whole contigs, with an inventory of every contig."""
    from virnucpro_core.sequences.split import split

    split(fasta, output, shard_bp)


@app.command()
def translate(
    fasta: Annotated[Path, typer.Argument(help="FASTA of contigs.")],
    output: Output,
    window: Annotated[int | None, typer.Option(min=3, help="Bases of a window.")] = None,
    model: Annotated[str | None, typer.Option(help="Take the window from this model.")] = None,
    models_dir: ModelsDir = None,
    fasta_dir: Annotated[
        Path | None, typer.Option(help="Also write the original's three FASTA files here.")
    ] = None,
) -> None:
    """Cut contigs into windows and keep the stop-free ones of their six frames."""
    from virnucpro_core.sequences.translate import translate

    if (window is None) == (model is None):
        raise InputError("translate needs the window's size: give either --window or --model.")
    if model is not None:
        from virnucpro_core.models.store import resolve_model

        window = resolve_model(model, models_dir).window
    assert window is not None
    translate([fasta], output, window, fasta_dir)


@app.command()
def embed(
    frames: Annotated[Path, typer.Argument(help="Frame table of translate.")],
    output: Output,
    model: ModelName,
    models_dir: ModelsDir = None,
    devices: Devices = "auto",
    precision: PrecisionOption = None,
    force: Force = False,
    checkpoint_dir: Annotated[
        Path | None, typer.Option(help="Where finished blocks are kept; else beside the output.")
    ] = None,
    token_budget: Annotated[
        int | None, typer.Option(min=1, help="ESM-2 tokens of a batch, at most.")
    ] = None,
) -> None:
    """Embed every frame with both encoders. Run again after a kill, it goes on where it stood."""
    from virnucpro_core.embedding.devices import parse_devices
    from virnucpro_core.embedding.engine import embed
    from virnucpro_core.models.store import resolve_model
    from virnucpro_core.models.validations import require

    chosen, places = resolve_model(model, models_dir), parse_devices(devices)
    if precision is not None:
        require(chosen, precision, places, force=force)
    embed(
        frames,
        output,
        chosen,
        devices=places,
        precision=precision,
        checkpoint_dir=checkpoint_dir,
        token_budget=token_budget,
    )


@app.command()
def merge(
    shards: Annotated[list[Path], typer.Argument(help="Shards of embed.")],
    frames: Frames,
    output: Output,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the embeddings too.")] = False,
) -> None:
    """Check a sample's shards against its frames and join them without copying embeddings."""
    from virnucpro_core.embedding.merge import merge

    merge(shards, frames, output, copy=copy)


@app.command()
def classify(
    embeddings: Annotated[Path, typer.Argument(help="Embeddings of merge, or one shard.")],
    frames: Frames,
    contigs: Annotated[Path, typer.Option(help="The contigs.parquet of split.")],
    output: Output,
    model: ModelName,
    models_dir: ModelsDir = None,
    sample: Annotated[str | None, typer.Option(help="Name for the report.")] = None,
    min_viral_fraction: MinViralFraction = 0.5,
) -> None:
    """Score frames and call windows and contigs."""
    from virnucpro_core.models.store import resolve_model
    from virnucpro_core.results.classify import classify

    classify(
        embeddings,
        frames,
        contigs,
        output,
        resolve_model(model, models_dir),
        sample=sample,
        min_viral_fraction=min_viral_fraction,
    )


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Folders that classify wrote.")],
    output: Output,
) -> None:
    """One self-contained page for all samples of a run."""
    from virnucpro_core.results.report import write_report

    write_report(results, output)


@app.command()
def validate(
    frames: Annotated[Path, typer.Argument(help="Frame table of translate.")],
    model: ModelName,
    precision: Annotated[Precision, typer.Option(help="The one in question.")],
    against: Annotated[Precision, typer.Option(help="The reference.")] = Precision.fp32,
    models_dir: ModelsDir = None,
    sample: Annotated[int, typer.Option(min=1, help="Frames to compare, at most.")] = 1000,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:0.")] = "auto",
    min_agreement: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of frames called alike.")
    ] = 0.999,
    min_cosine: Annotated[
        float, typer.Option(min=-1.0, max=1.0, help="Of either encoder, on every frame.")
    ] = 0.999,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures here.")
    ] = None,
) -> None:
    """Compare a precision with another on a sample of frames; exit code 1 below the bar."""
    from virnucpro_core.embedding.devices import parse_devices
    from virnucpro_core.models.store import resolve_model
    from virnucpro_core.validate import validate

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
    typer.echo(str(outcome))
    if json_file is not None:
        json_file.write_text(json.dumps(outcome.record(), indent=2) + "\n")
    if outcome.misses:
        raise VirNucProError(
            f"{model} in {precision} is below the bar: {'; '.join(outcome.misses)}."
        )


VirusFasta = Annotated[list[Path], typer.Option("--virus", help="Viral FASTA; may be repeated.")]
OtherFasta = Annotated[list[Path], typer.Option("--other", help="Other FASTA; may be repeated.")]


@app.command()
def train(
    virus: VirusFasta,
    other: OtherFasta,
    output: Output,
    unlabelled: Annotated[
        list[Path] | None, typer.Option(help="FASTA to learn sequences from, not classes.")
    ] = None,
    window: Annotated[int, typer.Option(min=3, help="Bases of a window.")] = 500,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train a small model from labelled FASTA, as the shipped `mini` was."""
    from virnucpro_core.train import train

    record = train(
        virus,
        other,
        output,
        unlabelled=unlabelled or [],
        window=window,
        seed=seed,
        device=device,
    )
    typer.echo(json.dumps(record["test"], indent=2))


@app.command()
def evaluate(
    virus: VirusFasta,
    other: OtherFasta,
    model: ModelName,
    models_dir: ModelsDir = None,
    test_part: Annotated[
        bool, typer.Option("--test-part", help="Only accessions that `train` held out.")
    ] = False,
) -> None:
    """Measure a model on labelled FASTA: ROC AUC, accuracy, sensitivity, specificity."""
    from virnucpro_core.heldout import Labelled, evaluate
    from virnucpro_core.models.store import resolve_model

    sample = Labelled.read(virus, other)
    chosen = sample.part("test") if test_part else sample
    typer.echo(json.dumps(evaluate(resolve_model(model, models_dir), chosen), indent=2))


@models_app.command("list")
def models_list(models_dir: ModelsDir = None) -> None:
    """The models in the models folder and the one that is shipped."""
    from virnucpro_core.models.store import list_models

    table = Table("model", "window", "values a frame", "folder")
    for model in list_models(models_dir):
        table.add_row(model.name, str(model.window), str(model.dim), str(model.folder))
    Console().print(table)


@models_app.command("import")
def models_import(
    name: Annotated[str, typer.Argument(help="virnucpro-300, virnucpro-500, or one of yours.")],
    dnabert_s: Annotated[Path, typer.Option(help="Folder: config.json, tokenizer.json, weights.")],
    esm2: Annotated[Path, typer.Option(help="fair-esm's .pt, or a Hugging Face folder.")],
    classifier: Annotated[Path, typer.Option(help="The original's .pth, or safetensors.")],
    models_dir: ModelsDir = None,
    window: Annotated[int | None, typer.Option(min=3, help="Bases of a window.")] = None,
) -> None:
    """Copy a model's files into the models folder, checked and hashed."""
    from virnucpro_core.models.store import import_model

    model = import_model(
        name,
        dnabert_s=dnabert_s,
        esm2=esm2,
        classifier=classifier,
        models_dir=models_dir,
        window=window,
    )
    typer.echo(f"{model.name}: windows of {model.window}, in {model.folder}")


@models_app.command("verify")
def models_verify(
    name: Annotated[str, typer.Argument(help="Name of a model.")], models_dir: ModelsDir = None
) -> None:
    """Compare a model's files with their recorded sha256."""
    from virnucpro_core.models.store import resolve_model, verify

    model = resolve_model(name, models_dir)
    verify(model)
    typer.echo(f"{model.name}: {len(model.weights)} files are as recorded")


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
        print(f"{where}: {error.format_message()} See `{where} --help`.", file=sys.stderr)
        code = 2
    except typer.Exit as end:
        code = end.exit_code
    except typer.Abort:
        code = 1
    except OSError as error:
        print(f"virnucpro: {error}", file=sys.stderr)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
