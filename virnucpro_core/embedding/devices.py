"""Which devices a run may use."""

from __future__ import annotations

import torch

from virnucpro_core.errors import InputError


def default_precision(device: torch.device) -> str:
    """fp16 on a GPU, fp32 on the CPU."""
    return "fp32" if device.type == "cpu" else "fp16"


def parse_devices(text: str) -> list[torch.device]:
    """Devices from "auto" (every GPU seen, else the CPU), "cpu", or a list like "cuda:0,cuda:1".

    A device named twice gets two processes. Raises InputError for one that is not there.
    """
    count = torch.cuda.device_count()
    if text == "auto":
        names = [f"cuda:{n}" for n in range(count)] or ["cpu"]
    else:
        names = ["cuda:0" if name == "cuda" else name for name in text.replace(" ", "").split(",")]
    devices = []
    for name in names:
        kind, _, number = name.partition(":")
        if name != "cpu" and not (kind == "cuda" and number.isdecimal()):
            raise InputError(f"device {name!r} is not known; give auto, cpu, or cuda:0,cuda:1 ….")
        if kind == "cuda" and int(number) >= count:
            raise InputError(
                f"device {name!r} is not there: CUDA sees {count} device(s); "
                "check the driver and CUDA_VISIBLE_DEVICES, or give --devices cpu."
            )
        devices.append(torch.device(name))
    return devices
