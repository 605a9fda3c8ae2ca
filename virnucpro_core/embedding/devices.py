"""Which devices a run may use, and that no other run on this machine uses them too."""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch

from virnucpro_core.errors import InputError
from virnucpro_core.files import take_lock

logger = logging.getLogger("virnucpro.embed")

DRIVER = Path("/proc/driver/nvidia/version")
SMI = "index,name,compute_cap,driver_version,memory.free,mig.mode.current"
SMI_SECONDS = 10
"""What `nvidia-smi` is asked for, and how long it may take."""


def default_precision(device: torch.device) -> str:
    """fp16 on a GPU, fp32 on the CPU."""
    return "fp32" if device.type == "cpu" else "fp16"


def parse_devices(text: str) -> list[torch.device]:
    """Devices from "auto" (every GPU seen, else the CPU), "cuda" (every GPU seen, at least one),
    "cpu", or a list like "cuda:0,cuda:1".

    A device named twice gets two processes. Raises InputError for one that is not there.
    """
    count = torch.cuda.device_count()
    seen = [f"cuda:{n}" for n in range(count)]
    names = {"auto": seen or ["cpu"], "cuda": seen}.get(text, text.replace(" ", "").split(","))
    if not names:
        raise InputError(f"there is no GPU to use: {gpu_facts()}. Or give --devices cpu.")
    devices = []
    for name in names:
        kind, _, number = name.partition(":")
        if name != "cpu" and not (kind == "cuda" and number.isdecimal()):
            raise InputError(
                f"device {name!r} is not known; give auto, cpu, cuda or cuda:0,cuda:1."
            )
        if kind == "cuda" and int(number) >= count:
            raise InputError(
                f"device {name!r} is not there: CUDA sees {count} device(s); {gpu_facts()}. "
                "Or give --devices cpu."
            )
        devices.append(torch.device(name))
    return devices


def gpu_facts() -> str:
    """What can be known of this machine's GPUs without using one."""
    facts = [] if torch.version.cuda else ["this torch is built without CUDA"]
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        facts.append(f"CUDA_VISIBLE_DEVICES is '{visible}'")
    smi = shutil.which("nvidia-smi")
    if not DRIVER.exists():
        facts.append("no NVIDIA driver is loaded")
    elif smi is None:
        facts.append(f"{DRIVER.read_text().splitlines()[0]}; no nvidia-smi to say more")
    else:
        query = [smi, f"--query-gpu={SMI}", "--format=csv,noheader"]
        try:
            said = subprocess.run(query, capture_output=True, text=True, timeout=SMI_SECONDS)
            lines = (said.stdout or said.stderr).splitlines()
            facts.append(f"nvidia-smi ({SMI}): {'; '.join(lines)}")
        except subprocess.TimeoutExpired:
            facts.append("nvidia-smi does not answer")
    return "; ".join(facts)


def identity(device: torch.device) -> str:
    """What a GPU is called in every process, whatever number each sees it by: its UUID.

    Slices of one GPU (MIG) share that, and are told apart by their entry in CUDA_VISIBLE_DEVICES.
    """
    seen = torch.cuda.get_device_properties(device)
    slices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    own = slices[device.index] if len(slices) > device.index else ""
    return own if own.startswith("MIG-") else str(seen.uuid)


def _lock(device: torch.device, held: ExitStack) -> bool:
    """Take a GPU's lock, which the kernel gives back when this process ends, however it ends."""
    folder = os.environ.get("VIRNUCPRO_LOCKS", "/tmp")  # not $TMPDIR, which may be a task's own
    path = Path(folder, f"virnucpro-{re.sub(r'[^A-Za-z0-9-]', '_', identity(device))}.lock")
    how = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # in a folder of everybody's
    try:
        file = os.open(path, how)  # another user's may be opened, not created
    except FileNotFoundError:
        file = os.open(path, how | os.O_CREAT, 0o644)
        with suppress(PermissionError):  # another user was faster
            os.fchmod(file, 0o644)  # whatever the umask, for other users' runs
    if not take_lock(file, path):
        os.close(file)
        return False
    held.callback(os.close, file)
    return True


def is_leased(device: torch.device) -> bool:
    """Whether another run holds a GPU."""
    with ExitStack() as held:
        return not _lock(device, held)


@contextmanager
def leased(text: str, gpus: int | None = None) -> Iterator[list[torch.device]]:
    """The devices of `text`, as `parse_devices` reads it, for this run alone.

    Of "auto" and "cuda" at most `gpus`, and only GPUs that no other run holds; where all are held
    it waits for one, and for a list until each is free. That a scheduler has assigned GPUs changes
    nothing: who has them alone finds them free.
    """
    devices = parse_devices(text)
    some = text in ("auto", "cuda")
    with ExitStack() as held:
        if devices[0].type == "cuda":
            devices = _wait_for(devices, (gpus or 0) if some else len(set(devices)), some, held)
        if some:
            logger.info("%s took %s", text, ", ".join(map(str, devices)))
        if gpus and devices[0].type == "cpu":
            logger.warning("%d GPU(s) asked for, but the CPU works: %s", gpus, gpu_facts())
        yield devices


def _wait_for(
    devices: Sequence[torch.device], wanted: int, some: bool, held: ExitStack
) -> list[torch.device]:
    said = False
    while True:
        with ExitStack() as mine:
            free: list[torch.device] = []
            for device in dict.fromkeys(devices):
                if (not wanted or len(free) < wanted) and _lock(device, mine):
                    free.append(device)
            if len(free) >= (min(wanted, len(set(devices))) or 1):
                held.push(mine.pop_all())
                return free if some else list(devices)
        if not said:
            logger.info("waiting for a GPU: other runs hold %s", ", ".join(map(str, devices)))
            said = True
        time.sleep(random.uniform(0.2, 1.0))
