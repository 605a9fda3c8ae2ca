"""Options that several commands share. A panel of the help is a group of the configuration too."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from virnucpro_core.models import DEFAULT
from virnucpro_core.results.criteria import Preset

Precision = Literal["fp32", "bf16", "fp16", "fp8"]
"""Number format of the encoders' weights and activations. Plain text: an Enum is no str to HDF5."""

DeviceClass = Literal["cpu", "t4", "v100", "a100", "l40s", "h100", "h200"]
"""What `embed` will run on."""

MODEL, SPLIT, TRANSLATE, EMBEDDING = "Model", "Split", "Translate", "Embedding"
CALLS, RUNNING = "Calls", "Running"


Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def option_in(panel: str) -> Callable[..., Any]:
    """How to spell an option of a panel: its help first, then as `typer.Option` takes it."""

    def option(help: str, *names: str, **more: Any) -> Any:
        return typer.Option(*names, help=help, rich_help_panel=panel, **more)

    return option


_model, _split, _embedding, _calls = map(option_in, (MODEL, SPLIT, EMBEDDING, CALLS))


def takes(options: Callable[..., None]) -> Decorator:
    """A command's `**keywords` are the parameters of `options`, spelled out for Typer."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        named = [one for one in own.parameters.values() if one.kind is not one.VAR_KEYWORD]
        named += inspect.signature(options, eval_str=True).parameters.values()
        keywords = [one.replace(kind=one.KEYWORD_ONLY) for one in named]
        vars(command)["__signature__"] = own.replace(parameters=keywords)
        return command

    return decorate


def _models(incomplete: str) -> list[str]:
    from virnucpro_core.models.store import PUBLISHED_WINDOWS, list_models

    names = {model.name for model in list_models()} | PUBLISHED_WINDOWS.keys()
    return sorted(name for name in names if name.startswith(incomplete))


_FASTA = "plain or compressed (.gz, .bz2, .xz, .zst); - is standard input."
Fasta = Annotated[list[Path], typer.Argument(help=f"FASTA files, {_FASTA}")]
OneFasta = Annotated[Path, typer.Argument(help=f"A FASTA file of contigs, {_FASTA}")]
FrameTable = Annotated[Path, typer.Argument(help="A frame table of translate.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the result goes.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")]
ModelName = Annotated[
    str,
    _model(
        "A model: mini, virnucpro-300, virnucpro-500, or one of your own.",
        autocompletion=_models,
        default_factory=lambda: DEFAULT,
        show_default=DEFAULT,
    ),
]
MaybeModel = Annotated[
    str | None, _model("Take what is not given from this model.", autocompletion=_models)
]
ModelsDir = Annotated[
    Path | None,
    _model("The folder of models; mini needs none.", show_default="$VIRNUCPRO_MODELS"),
]
Devices = Annotated[
    str,
    _embedding(
        "What embeds: auto (the GPUs that are free, else the CPU), cuda, cpu, or a list such as "
        "cuda:0,cuda:1."
    ),
]
Device = Annotated[str, _embedding("What embeds: auto, cpu or cuda:0.")]
PrecisionOption = Annotated[
    Precision | None,
    _embedding("The arithmetic of the encoders.", show_default="fp32 on a CPU, fp16 on a GPU"),
]
TokenBudget = Annotated[
    int | None, _embedding("ESM-2 tokens of a batch, at most.", min=1, show_default="by the device")
]
Gpus = Annotated[
    int | None,
    _embedding(
        "GPUs to take with --device auto or cuda, at most.",
        min=1,
        show_default="all that are free",
    ),
]
CheckpointDir = Annotated[
    Path | None,
    _embedding("Where finished rows are kept.", show_default="beside the output"),
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
    _split(
        "About how many bases make a piece.",
        min=1,
        max=2_000_000_000,  # more of them gain nothing, and a piece has to be worth losing
        show_default="by --model and --device-class, else 10,000,000",
    ),
]
DeviceClassOption = Annotated[
    DeviceClass, _split("With --model, a piece keeps such a device busy for 10 minutes.")
]


def _genetic_code(context: typer.Context, given: str) -> str:
    if context.resilient_parsing:  # for a completion, where numpy would be waited for
        return given
    from virnucpro_core.sequences.codes import genetic_code

    return genetic_code(given)


GeneticCode = Annotated[
    str,
    option_in(TRANSLATE)(
        "The number of one of Biopython's genetic codes, or auto: 1, 4 or 15 by each contig.",
        callback=_genetic_code,
    ),
]


def criteria(
    preset: Annotated[
        Preset | None,
        _calls("How sure a call has to be; docs/calls.md has figures.", show_default="balanced"),
    ] = None,
    min_score: Annotated[
        float | None,
        _calls("The least score of a virus, above 0 and at most 1, in place of a preset."),
    ] = None,
    max_fdr: Annotated[
        float | None,
        _calls("The greatest false discovery rate of the calls, in place of a preset."),
    ] = None,
    min_length: Annotated[int, _calls("Bases; shorter contigs get no call.", min=0)] = 0,
    min_evidence: Annotated[
        int | None,
        _calls(
            "Readable bases in scored windows below which there is no call.",
            min=0,
            show_default="by the preset",
        ),
    ] = None,
    prevalence: Annotated[
        str,
        _calls(
            "The share of viruses among the sample's contigs: auto, by its scores, or such as 0.05."
        ),
    ] = "auto",
) -> None:
    """How contigs are called: `results.criteria.Asked` as options."""
