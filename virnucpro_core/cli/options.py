"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Precision(StrEnum):
    """Number format of the encoders' weights and activations."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    fp8 = "fp8"


class DeviceClass(StrEnum):
    """What `embed` will run on."""

    cpu = "cpu"
    t4 = "t4"
    v100 = "v100"
    a100 = "a100"
    l40s = "l40s"
    h100 = "h100"
    h200 = "h200"


Fasta = Annotated[list[Path], typer.Argument(help="FASTA files; .gz .bz2 .xz .zst are read too.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the result goes.")]
ModelName = Annotated[str, typer.Option("--model", help="mini, virnucpro-300 or virnucpro-500.")]
ModelsDir = Annotated[
    Path | None,
    typer.Option(help="Folder of models; else $VIRNUCPRO_MODELS. mini needs none."),
]
Devices = Annotated[
    str,
    typer.Option(
        help="auto (the GPUs that are free, else the CPU), cuda, cpu, or a list: cuda:0,cuda:1."
    ),
]
PrecisionOption = Annotated[
    Precision | None, typer.Option(help="Default: fp32 on CPU, fp16 on CUDA.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Run fp8 even where no validation was passed.")
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
MinViralFraction = Annotated[
    float,
    typer.Option(help="Share of a contig's windows with a frame that makes it a virus; above 0."),
]


VirusFasta = Annotated[list[Path], typer.Option("--virus", help="Viral FASTA; may be repeated.")]
OtherFasta = Annotated[list[Path], typer.Option("--other", help="Other FASTA; may be repeated.")]
