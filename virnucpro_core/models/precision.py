"""Number formats that the encoders can run in, and where."""

from __future__ import annotations

import torch

from virnucpro_core.errors import InputError

HALF = (torch.float16, torch.bfloat16)

FP8_MAX = 448.0
NORM_SCALE = 8.0
"""Factor on a normed row in e4m3: its values are at most √dim, so no dim below 3136 overflows."""

PRECISIONS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.bfloat16,  # what is not quantized
}


def dtype_of(precision: str) -> torch.dtype:
    """torch dtype of a precision's name; InputError for one that is unknown."""
    try:
        return PRECISIONS[precision]
    except KeyError:
        raise InputError(
            f"precision {precision!r} is not known; choose one of {', '.join(PRECISIONS)}."
        ) from None


def has_fp8(device: torch.device) -> bool:
    """Whether the device multiplies e4m3."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def check_precision(precision: str, device: torch.device) -> None:
    """InputError unless the precision is known and the device computes in it."""
    dtype_of(precision)
    if precision == "fp8" and not has_fp8(device):
        raise InputError(
            f"precision fp8 needs a GPU of compute capability 8.9 or more, which {device} is not; "
            "choose another --precision."
        )
