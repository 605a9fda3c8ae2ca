"""Options that several commands share. A panel of the help is a group of the configuration too."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from virnucpro_core.inputs import check_local
from virnucpro_core.results.criteria import Preset

Precision = Literal["fp32", "bf16", "fp16", "fp8"]
"""Number format of the encoders' weights and activations. Plain text: an Enum is no str to HDF5."""

DeviceClass = Literal["cpu", "t4", "v100", "a100", "l40s", "h100", "h200"]
"""What `embed` will run on."""

MODEL, SPLIT, TRANSLATE, EMBEDDING = "Model", "Split", "Translate", "Embedding"
CALLS, RUNNING = "Calls", "Running"


def takes(options: Callable[..., None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command's `**keywords` are the parameters of `options`, spelled out for Typer."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        named = [one for one in own.parameters.values() if one.kind is not one.VAR_KEYWORD]
        named += inspect.signature(options, eval_str=True).parameters.values()
        keywords = [one.replace(kind=one.KEYWORD_ONLY) for one in named]
        vars(command)["__signature__"] = own.replace(parameters=keywords)
        return command

    return decorate


def _files(paths: list[Path] | Path | None) -> list[Path] | Path | None:
    check_local(paths if isinstance(paths, list) else [paths] if paths else [])
    return paths


def _models(incomplete: str) -> list[str]:
    from virnucpro_core.models.store import PUBLISHED_WINDOWS, list_models

    names = {model.name for model in list_models()} | PUBLISHED_WINDOWS.keys()
    return sorted(name for name in names if name.startswith(incomplete))


_FASTA = "plain or compressed (.gz, .bz2, .xz, .zst); - is standard input."
Fasta = Annotated[list[Path], typer.Argument(help=f"FASTA files, {_FASTA}", callback=_files)]
OneFasta = Annotated[
    Path, typer.Argument(help=f"A FASTA file of contigs, {_FASTA}", callback=_files)
]
FrameTable = Annotated[Path, typer.Argument(help="A frame table of translate.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the result goes.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")]
ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        help="A model: mini, virnucpro-300, virnucpro-500, or one of your own.",
        autocompletion=_models,
        rich_help_panel=MODEL,
    ),
]
MaybeModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Take what is not given from this model.",
        autocompletion=_models,
        rich_help_panel=MODEL,
    ),
]
ModelsDir = Annotated[
    Path | None,
    typer.Option(
        help="The folder of models; mini needs none.",
        show_default="$VIRNUCPRO_MODELS",
        rich_help_panel=MODEL,
    ),
]
Devices = Annotated[
    str,
    typer.Option(
        help="What embeds: auto (the GPUs that are free, else the CPU), cuda, cpu, or a list such "
        "as cuda:0,cuda:1.",
        rich_help_panel=EMBEDDING,
    ),
]
Device = Annotated[
    str, typer.Option(help="What embeds: auto, cpu or cuda:0.", rich_help_panel=EMBEDDING)
]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option(
        help="The arithmetic of the encoders.",
        show_default="fp32 on a CPU, fp16 on a GPU",
        rich_help_panel=EMBEDDING,
    ),
]
TokenBudget = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="ESM-2 tokens of a batch, at most.",
        show_default="by the device",
        rich_help_panel=EMBEDDING,
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="GPUs to take with --device auto or cuda, at most.",
        show_default="all that are free",
        rich_help_panel=EMBEDDING,
    ),
]
CheckpointDir = Annotated[
    Path | None,
    typer.Option(
        help="Where finished rows are kept.",
        show_default="beside the output",
        rich_help_panel=EMBEDDING,
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Run fp8 without a validation; replace what is of another input."),
]
Replace = Annotated[
    bool, typer.Option("--force", help="Replace what was made from another input there.")
]
Frames = Annotated[
    list[Path],
    typer.Option("--frames", help="A frame table, or a folder of them; may be repeated."),
]
ShardBp = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=2_000_000_000,  # more of them gain nothing, and a piece has to be worth losing
        help="About how many bases make a piece.",
        show_default="by --model and --device-class, else 10,000,000",
        rich_help_panel=SPLIT,
    ),
]
DeviceClassOption = Annotated[
    DeviceClass,
    typer.Option(
        help="With --model, a piece keeps such a device busy for 10 minutes.",
        rich_help_panel=SPLIT,
    ),
]


def _genetic_code(context: typer.Context, given: str) -> str:
    if context.resilient_parsing:  # for a completion, where numpy would be waited for
        return given
    from virnucpro_core.sequences.codes import genetic_code

    return genetic_code(given)


GeneticCode = Annotated[
    str,
    typer.Option(
        help="The number of one of Biopython's genetic codes, or auto: 1, 4 or 15 by each contig.",
        callback=_genetic_code,
        rich_help_panel=TRANSLATE,
    ),
]


def _calls(**more: Any) -> Any:
    return typer.Option(rich_help_panel=CALLS, **more)


def criteria(
    preset: Annotated[
        Preset | None,
        _calls(
            help="How sure a call has to be; docs/calls.md has figures.", show_default="balanced"
        ),
    ] = None,
    min_score: Annotated[
        float | None,
        _calls(help="The least score of a virus, above 0 and at most 1, in place of a preset."),
    ] = None,
    max_fdr: Annotated[
        float | None,
        _calls(help="The greatest false discovery rate of the calls, in place of a preset."),
    ] = None,
    min_length: Annotated[int, _calls(min=0, help="Shorter contigs get no call, in bases.")] = 0,
    min_evidence: Annotated[
        int | None,
        _calls(
            min=0,
            help="Readable bases in scored windows below which there is no call.",
            show_default="by the preset",
        ),
    ] = None,
    prevalence: Annotated[
        str,
        _calls(
            help="The share of viruses among the sample's contigs: auto, by its scores, or a "
            "number such as 0.05.",
        ),
    ] = "auto",
) -> None:
    """How contigs are called: `results.criteria.Asked` as options."""


VirusFasta = Annotated[
    list[Path],
    typer.Option("--virus", help="FASTA of viruses; may be repeated.", callback=_files),
]
OtherFasta = Annotated[
    list[Path],
    typer.Option("--other", help="FASTA of all else; may be repeated.", callback=_files),
]
MoreVirus = Annotated[
    list[Path] | None,
    typer.Option(help="More FASTA of viruses, to train on alone.", callback=_files),
]
MoreOther = Annotated[
    list[Path] | None,
    typer.Option(help="More FASTA of all else, to train on alone.", callback=_files),
]
