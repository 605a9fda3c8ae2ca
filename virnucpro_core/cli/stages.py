"""`virnucpro predict` and the stages that it is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

import typer

from virnucpro_core.cli import stdin
from virnucpro_core.cli.command import CONFIGURATION, RUN, STAGES, commands
from virnucpro_core.cli.options import (
    CheckpointDir,
    DeviceClassOption,
    Devices,
    Fasta,
    Force,
    Frames,
    FrameTable,
    GeneticCode,
    Gpus,
    MaybeModel,
    ModelName,
    ModelsDir,
    OneFasta,
    Output,
    PrecisionOption,
    Replace,
    ShardBp,
    TokenBudget,
    criteria,
    takes,
)
from virnucpro_core.errors import InputError
from virnucpro_core.results.criteria import Asked

app = typer.Typer()
run = commands(app, RUN)
stage = commands(app, STAGES)


@run(
    "virnucpro predict contigs.fa.gz -o results --model mini",
    "virnucpro predict *.fa -o results --model virnucpro-500 --models-dir models --device cuda:0",
    "virnucpro predict contigs.fa -o results --config run.yaml --set calls.preset=sensitive",
    "zcat run1.fa.gz run2.fa.gz | virnucpro predict - -o results --model mini",
)
@takes(criteria)
def predict(
    context: typer.Context,
    fasta: Fasta,
    output: Output,
    model: ModelName,
    models_dir: ModelsDir = None,
    genetic_code: GeneticCode = "1",
    device: Devices = "auto",
    precision: PrecisionOption = None,
    token_budget: TokenBudget = None,
    gpus: Gpus = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace results and work of another input there; run fp8 without a validation.",
        ),
    ] = False,
    **asked: Unpack[Asked],
) -> None:
    """Call the contigs of FASTA files, all stages at once; run again after a kill, it goes on."""
    from virnucpro_core.one_process import predict
    from virnucpro_core.progress import counted

    table = predict(
        stdin.named(fasta, output),
        model,
        output=output,
        models_dir=models_dir,
        devices=device,
        precision=precision,
        token_budget=token_budget,
        gpus=gpus,
        force=force,
        genetic_code=genetic_code,
        configuration=context.meta[CONFIGURATION],
        **asked,
    )
    calls = table["call"].to_pylist()
    counts = ", ".join(f"{calls.count(c)} {c}" for c in ("virus", "other", "no_call"))
    typer.echo(f"{counted(len(calls), 'contig')}: {counts}; see {output / 'report.html'}")
    if model == "mini":
        typer.echo(
            "mini is the small model that comes along; docs/mini.md says what to expect of it"
        )


@stage(
    "virnucpro split contigs.fa.gz -o pieces",
    "virnucpro split contigs.fa.gz -o pieces --model virnucpro-500 --device-class h100",
)
def split(
    fasta: Fasta,
    output: Output,
    shard_bp: ShardBp = None,
    model: MaybeModel = None,
    device_class: DeviceClassOption = "cpu",
    force: Replace = False,
) -> None:
    """Cut FASTA files into pieces of whole contigs, with an inventory of every contig."""
    from virnucpro_core.sequences.pace import amount, auto_shard_bp, cpu_time
    from virnucpro_core.sequences.split import SHARD_BP, split

    fasta = stdin.named(fasta, output)
    if shard_bp is None and model is not None:
        shard_bp = auto_shard_bp(fasta, model, device_class)
    pieces = split(fasta, output, shard_bp or SHARD_BP, force=force)
    if model is not None:
        typer.echo(cpu_time(fasta, model))
        typer.echo(amount(pieces, model, device_class))


@stage(
    "virnucpro translate piece_00001.fasta -o frames.parquet --model mini",
    "virnucpro translate contigs.fa -o frames.parquet --window 500 --fasta-dir original",
)
def translate(
    fasta: OneFasta,
    output: Output,
    window: Annotated[
        int | None, typer.Option(min=3, help="Bases of a window; else by --model.")
    ] = None,
    model: MaybeModel = None,
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

    Of a window without any, its longest run of codons is kept where the model reads such.
    """
    from virnucpro_core.sequences.translate import translate

    if (window is None) == (model is None):
        raise InputError("translate needs the window's size: give either --window or --model.")
    if model is not None:
        from virnucpro_core.models.store import resolve_model

        chosen = resolve_model(model, models_dir)
        window, runs = chosen.window, chosen.rule is not None
    assert window is not None
    translate(stdin.named([fasta], output), output, window, fasta_dir, genetic_code, runs=runs)


@stage("virnucpro embed frames.parquet -o shard.h5 --model virnucpro-500 --models-dir models")
def embed(
    frames: FrameTable,
    output: Output,
    model: ModelName,
    models_dir: ModelsDir = None,
    device: Devices = "auto",
    precision: PrecisionOption = None,
    force: Force = False,
    checkpoint_dir: CheckpointDir = None,
    token_budget: TokenBudget = None,
    gpus: Gpus = None,
) -> None:
    """Embed every frame with both encoders. Run again after a kill, it goes on where it stood."""
    from virnucpro_core.embedding.standby import standing_by

    with standing_by(device, gpus):
        from virnucpro_core.embedding.engine import embed
        from virnucpro_core.models.store import resolve_model

        embed(
            frames,
            output,
            resolve_model(model, models_dir),
            devices=device,
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


@stage("virnucpro merge shards --frames frames -o embeddings.h5")
def merge(
    shards: Annotated[list[Path], typer.Argument(help="Shards of embed, or folders of them.")],
    frames: Frames,
    output: Output,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the embeddings too, into one self-contained file.")
    ] = False,
) -> None:
    """Check a sample's shards against its frames and join them without copying embeddings."""
    from virnucpro_core.embedding.merge import merge

    merge(_listed(shards, ".h5"), _listed(frames, ".parquet"), output, copy=copy)


@stage("virnucpro classify all.h5 --frames frames --contigs contigs.parquet -o out --model mini")
@takes(criteria)
def classify(
    embeddings: Annotated[Path, typer.Argument(help="The embeddings of merge, or one shard.")],
    frames: Frames,
    contigs: Annotated[Path, typer.Option(help="The contigs.parquet of split.")],
    output: Output,
    model: ModelName,
    models_dir: ModelsDir = None,
    sample: Annotated[str | None, typer.Option(help="The sample's name in the report.")] = None,
    force: Replace = False,
    **asked: Unpack[Asked],
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
        force=force,
        **asked,
    )


@run(
    "virnucpro call results --preset conservative",
    "virnucpro call results --min-score 0.9 --min-length 1000",
)
@takes(criteria)
def call(
    context: typer.Context,
    results: Annotated[Path, typer.Argument(help="A folder that predict or classify wrote.")],
    **asked: Unpack[Asked],
) -> None:
    """Call contigs again from the scores that results keep, in seconds: no model is needed."""
    from virnucpro_core.results.again import call_again

    called = {key: one for key, one in context.meta[CONFIGURATION].items() if key[:5] == "calls"}
    call_again(results, called, **asked)


@stage("virnucpro report gut_1 gut_2 -o report.html")
def report(
    results: Annotated[list[Path], typer.Argument(help="Folders that classify wrote.")],
    output: Output,
    earlier: Annotated[
        list[str] | None,
        typer.Option(help="A folder of earlier results beside the page; may be repeated."),
    ] = None,
    command: Annotated[
        str | None, typer.Option(help="What was run, where it made all of these folders.")
    ] = None,
    run_name: Annotated[str | None, typer.Option(help="What that run is called.")] = None,
) -> None:
    """Write one self-contained page for all samples of a run."""
    from virnucpro_core.results.report import write_report

    write_report(results, output, earlier=earlier or (), command=command, run_name=run_name)
