"""`virnucpro predict` and the stages that it is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from virnucpro_core.cli.options import (
    DeviceClassOption,
    Devices,
    Fasta,
    Force,
    Frames,
    GeneticCode,
    MaxFdr,
    MinEvidence,
    MinLength,
    MinScore,
    ModelName,
    ModelsDir,
    OneFasta,
    Output,
    PrecisionOption,
    PresetOption,
    Prevalence,
    Replace,
    ShardBp,
)
from virnucpro_core.errors import InputError

app = typer.Typer()


@app.command()
def predict(
    fasta: Fasta,
    output: Output,
    model: ModelName,
    models_dir: ModelsDir = None,
    devices: Devices = "auto",
    precision: PrecisionOption = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace results and work of another input there; run fp8 without a validation.",
        ),
    ] = False,
    genetic_code: GeneticCode = "1",
    preset: PresetOption = None,
    min_score: MinScore = None,
    max_fdr: MaxFdr = None,
    min_length: MinLength = 0,
    min_evidence: MinEvidence = None,
    prevalence: Prevalence = "auto",
) -> None:
    """Call the contigs of a FASTA, all stages at once; run again after a kill, it goes on."""
    from virnucpro_core.one_process import predict

    table = predict(
        fasta,
        model,
        output=output,
        models_dir=models_dir,
        devices=devices,
        precision=precision,
        force=force,
        genetic_code=genetic_code,
        preset=preset,
        min_score=min_score,
        max_fdr=max_fdr,
        min_length=min_length,
        min_evidence=min_evidence,
        prevalence=prevalence,
    )
    calls = table["call"].to_pylist()
    counts = ", ".join(f"{calls.count(c)} {c}" for c in ("virus", "other", "no_call"))
    typer.echo(f"{len(calls)} contigs: {counts}; see {output / 'report.html'}")
    if model == "mini":
        typer.echo(
            "mini is the small model that comes along; docs/mini.md says what to expect of it"
        )


@app.command()
def split(
    fasta: Fasta,
    output: Output,
    shard_bp: ShardBp = None,
    model: Annotated[str | None, typer.Option(help="The model that will embed.")] = None,
    device_class: DeviceClassOption = "cpu",
    force: Replace = False,
) -> None:
    """Cut FASTA into pieces of whole contigs, with an inventory of every contig."""
    from virnucpro_core.sequences.pace import amount, auto_shard_bp, cpu_time
    from virnucpro_core.sequences.split import SHARD_BP, split

    if shard_bp is None and model is not None:
        shard_bp = auto_shard_bp(fasta, model, device_class)
    pieces = split(fasta, output, shard_bp or SHARD_BP, force=force)
    if model is not None:
        typer.echo(cpu_time(fasta, model))
        typer.echo(amount(pieces, model, device_class))


@app.command()
def translate(
    fasta: OneFasta,
    output: Output,
    window: Annotated[int | None, typer.Option(min=3, help="Bases of a window.")] = None,
    model: Annotated[str | None, typer.Option(help="Take both from this model.")] = None,
    models_dir: ModelsDir = None,
    runs: Annotated[
        bool, typer.Option("--runs", help="Read windows without a frame by their longest run.")
    ] = False,
    fasta_dir: Annotated[
        Path | None, typer.Option(help="Also write the original's three FASTA files here.")
    ] = None,
    genetic_code: GeneticCode = "1",
) -> None:
    """Cut contigs into windows and keep the stop-free ones of their six frames.

    Of a window without any, its longest run of codons, where the model reads such.
    """
    from virnucpro_core.sequences.translate import translate

    if (window is None) == (model is None):
        raise InputError("translate needs the window's size: give either --window or --model.")
    if model is not None:
        from virnucpro_core.models.store import resolve_model

        chosen = resolve_model(model, models_dir)
        window, runs = chosen.window, chosen.rule is not None
    assert window is not None
    translate([fasta], output, window, fasta_dir, genetic_code, runs=runs)


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
        Path | None, typer.Option(help="Where finished rows are kept; else beside the output.")
    ] = None,
    token_budget: Annotated[
        int | None, typer.Option(min=1, help="ESM-2 tokens of a batch, at most.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs to take with auto or cuda, at most.")
    ] = None,
) -> None:
    """Embed every frame with both encoders. Run again after a kill, it goes on where it stood."""
    from virnucpro_core.embedding.engine import embed
    from virnucpro_core.models.store import resolve_model

    embed(
        frames,
        output,
        resolve_model(model, models_dir),
        devices=devices,
        gpus=gpus,
        precision=precision,
        force=force,
        checkpoint_dir=checkpoint_dir,
        token_budget=token_budget,
    )


def _listed(paths: list[Path], suffix: str) -> list[Path]:
    """The files that were named; a folder stands for those in it, in the order of their numbers.

    A command line holds the names of some 15,000 files.
    """
    files = []
    for path in paths:
        found = [file for file in path.glob(f"*{suffix}") if file.is_file()] or [path]
        files += sorted(found, key=lambda file: (len(file.name), file.name))
    return files


@app.command()
def merge(
    shards: Annotated[list[Path], typer.Argument(help="Shards of embed, or folders of them.")],
    frames: Frames,
    output: Output,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the embeddings too.")] = False,
) -> None:
    """Check a sample's shards against its frames and join them without copying embeddings."""
    from virnucpro_core.embedding.merge import merge

    merge(_listed(shards, ".h5"), _listed(frames, ".parquet"), output, copy=copy)


@app.command()
def classify(
    embeddings: Annotated[Path, typer.Argument(help="Embeddings of merge, or one shard.")],
    frames: Frames,
    contigs: Annotated[Path, typer.Option(help="The contigs.parquet of split.")],
    output: Output,
    model: ModelName,
    models_dir: ModelsDir = None,
    sample: Annotated[str | None, typer.Option(help="Name for the report.")] = None,
    preset: PresetOption = None,
    min_score: MinScore = None,
    max_fdr: MaxFdr = None,
    min_length: MinLength = 0,
    min_evidence: MinEvidence = None,
    prevalence: Prevalence = "auto",
    force: Replace = False,
) -> None:
    """Score frames and call windows and contigs."""
    from virnucpro_core.models.store import resolve_model
    from virnucpro_core.results.classify import classify

    classify(
        embeddings,
        _listed(frames, ".parquet"),
        contigs,
        output,
        resolve_model(model, models_dir),
        sample=sample,
        preset=preset,
        min_score=min_score,
        max_fdr=max_fdr,
        min_length=min_length,
        min_evidence=min_evidence,
        prevalence=prevalence,
        force=force,
    )


@app.command()
def call(
    results: Annotated[Path, typer.Argument(help="A folder that predict or classify wrote.")],
    preset: PresetOption = None,
    min_score: MinScore = None,
    max_fdr: MaxFdr = None,
    min_length: MinLength = 0,
    min_evidence: MinEvidence = None,
    prevalence: Prevalence = "auto",
) -> None:
    """Call contigs again from the scores that results keep, in seconds: no model is needed."""
    from virnucpro_core.results.again import call_again

    call_again(
        results,
        preset=preset,
        min_score=min_score,
        max_fdr=max_fdr,
        min_length=min_length,
        min_evidence=min_evidence,
        prevalence=prevalence,
    )


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Folders that classify wrote.")],
    output: Output,
    earlier: Annotated[
        list[str] | None,
        typer.Option(help="A folder of results beside the page."),
    ] = None,
) -> None:
    """One self-contained page for all samples of a run."""
    from virnucpro_core.results.report import write_report

    write_report(results, output, earlier=earlier or ())
