"""What figures were taken on."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from importlib import metadata

import torch

from virnucpro_core.version import __version__


def machine(device: torch.device) -> dict[str, str]:
    """What the figures were taken on."""
    about = {"device": platform.processor() or platform.machine(), "cpus": str(os.cpu_count())}
    if device.type == "cuda":
        driver: list[str] = []
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with suppress(OSError, subprocess.TimeoutExpired):  # containers need not have it
            said = subprocess.run(query, capture_output=True, text=True, check=False, timeout=10)
            driver = said.stdout.split()
        about = {
            "device": torch.cuda.get_device_name(device),
            "driver": driver[0] if driver else "unknown",
            "cuda": str(torch.version.cuda),
        }
    about["virnucpro"] = __version__
    for package in ("torch", "triton", "transformers", "fair-esm", "esm-efficient"):
        try:
            about[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            about[package] = "not installed"
    return {**about, "python": platform.python_version()}
