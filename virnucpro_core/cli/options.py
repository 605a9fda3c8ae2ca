"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from virnucpro_core.inputs import check_local
from virnucpro_core.models import DEFAULT
from virnucpro_core.results.criteria import Preset

Precision = Literal["fp32", "bf16", "fp16", "fp8"]
"""Number format of the encoders' weights and activations. Plain text: an Enum is no str to HDF5."""

DeviceClass = Literal["cpu", "t4", "v100", "a100", "l40s", "h100", "h200"]
"""What `embed` will run on."""


def _files(paths: list[Path] | Path | None) -> list[Path] | Path | None:
    check_local(paths if isinstance(paths, list) else [paths] if paths else [])
    return paths


Fasta = Annotated[
    list[Path],
    typer.Argument(help="FASTA files; .gz .bz2 .xz .zst are read too.", callback=_files),
]
OneFasta = Annotated[Path, typer.Argument(help="FASTA of contigs.", callback=_files)]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the result goes.")]
ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        default_factory=lambda: DEFAULT,
        show_default=DEFAULT,
        help="mini, virnucpro-300 or virnucpro-500.",
    ),
]
ModelsDir = Annotated[
    Path | None,
    typer.Option(help="Folder of models; else $VIRNUCPRO_MODELS. mini needs none."),
]
Devices = Annotated[
    str,
    typer.Option(
        "--device",
        "--devices",
        help="auto (the GPUs that are free, else the CPU), cuda, cpu, or a list: cuda:0,cuda:1.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda:0.")]
PrecisionOption = Annotated[
    Precision | None, typer.Option(help="Default: fp32 on CPU, fp16 on CUDA.")
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Run fp8 without a validation; replace what is of another input."),
]
Replace = Annotated[
    bool, typer.Option("--force", help="Replace what was made from another input there.")
]
Frames = Annotated[
    list[Path], typer.Option("--frames", help="Frame table, or a folder of them; may be repeated.")
]
ShardBp = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=2_000_000_000,  # more of them gain nothing, and a piece has to be worth losing
        help="Bases of a piece, about; else by --model, or 10,000,000.",
    ),
]
DeviceClassOption = Annotated[
    DeviceClass, typer.Option(help="With --model: a piece keeps such a device 10 minutes busy.")
]
PresetOption = Annotated[
    Preset | None,
    typer.Option(help="How sure a call has to be. Default: balanced. docs/calls.md has figures."),
]
MinScore = Annotated[
    float | None, typer.Option(help="Least score of a virus, in place of a preset; above 0.")
]
MaxFdr = Annotated[
    float | None,
    typer.Option(help="Greatest false discovery rate of the calls, in place of a preset."),
]
MinLength = Annotated[int, typer.Option(min=0, help="Bases; shorter contigs get no call.")]
MinEvidence = Annotated[
    int | None,
    typer.Option(min=0, help="Readable bases in scored windows below which there is no call."),
]
Prevalence = Annotated[
    str,
    typer.Option(help="Share of viruses among the sample's contigs: auto, by its scores, or 0.05."),
]


def _genetic_code(given: str) -> str:
    from virnucpro_core.sequences.codes import genetic_code

    return genetic_code(given)


GeneticCode = Annotated[
    str,
    typer.Option(
        help="Number of one of Biopython's genetic codes, or auto: 1, 4 or 15 by each contig.",
        callback=_genetic_code,
    ),
]
VirusFasta = Annotated[
    list[Path], typer.Option("--virus", help="Viral FASTA; may be repeated.", callback=_files)
]
OtherFasta = Annotated[
    list[Path], typer.Option("--other", help="Other FASTA; may be repeated.", callback=_files)
]
MoreVirus = Annotated[
    list[Path] | None, typer.Option(help="More viral FASTA, to train on alone.", callback=_files)
]
MoreOther = Annotated[
    list[Path] | None, typer.Option(help="More other FASTA, to train on alone.", callback=_files)
]
