"""What this machine can do, and what is missing: a line a thing, never a traceback."""

from __future__ import annotations

import fcntl
import locale
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module, metadata, util
from pathlib import Path
from typing import NamedTuple

from virnucpro_core.errors import first_line
from virnucpro_core.host import cores, cpu_quota, free_disk, in_bytes, memory
from virnucpro_core.version import __version__

OK, NOTE, MISSING = "ok", "note", "missing"
"""As it should be; good to know or to mend; `predict` does not run without."""

LIBRARIES = {
    **{name: name for name in ("torch", "numpy", "pyarrow", "h5py", "tokenizers", "safetensors")},
    **{"Bio": "biopython", "jinja2": "jinja2"},
}
"""Modules that a run loads, and the packages that they are of."""

LEAST_MEMORY = 2e9
LEAST_DISK = 1e9
LEAST_FILES = 256


class Finding(NamedTuple):
    """A line of what was found."""

    state: str
    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:<8} {self.what:<11} {self.text}"


def examine(models_dir: Path | None, output: Path) -> Iterator[Finding]:
    """Look at everything that a run needs or may use, in turn; a check that fails is a finding."""
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("program", _program),
        ("libraries", _libraries),
        ("GPU", _gpus),
        ("kernels", _kernels),
        ("processor", _processor),
        ("memory", _memory),
        ("limits", _limits),
        ("output", lambda: _output(output)),
        ("models", lambda: _models(models_dir)),
        ("pipeline", _pipeline),
        ("locale", _locale),
    ]
    for what, check in checks:
        try:
            yield from check()
        except Exception as error:  # whatever a broken machine may raise
            text = f"could not be looked at: {type(error).__name__}: {first_line(error)}"
            yield Finding(NOTE, what, text)


def _program() -> Iterator[Finding]:
    text = f"virnucpro {__version__}, Python {platform.python_version()}, {sys.executable}"
    yield Finding(OK, "program", text)


def _libraries() -> Iterator[Finding]:
    found = []
    for name, package in LIBRARIES.items():
        try:
            import_module(name)
            found.append(f"{package} {metadata.version(package)}")
        except Exception as error:
            text = f"{package} cannot be loaded ({error}); install virnucpro again"
            yield Finding(MISSING, "libraries", text.replace("\n", " "))
    yield Finding(OK, "libraries", ", ".join(found))


def _gpus() -> Iterator[Finding]:
    import torch

    from virnucpro_core.embedding.devices import gpu_facts, is_leased
    from virnucpro_core.models.precision import has_fp8

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if not usable:
        why = "; ".join([*(str(one.message).strip().splitlines()[0] for one in said), gpu_facts()])
        yield Finding(NOTE, "GPU", f"none can be used, so the CPU does the work: {why}")
        return
    for number in range(torch.cuda.device_count()):
        place = torch.device(f"cuda:{number}")
        seen = torch.cuda.get_device_properties(place)
        free, total = torch.cuda.mem_get_info(place)
        precisions = ["fp16"]
        precisions += ["bf16"] if seen.major >= 8 else []
        precisions += ["fp8"] if has_fp8(place) else []
        text = (
            f"{place} {seen.name}, compute capability {seen.major}.{seen.minor}, "
            f"{in_bytes(free)} of {in_bytes(total)} free; {', '.join(precisions)}"
        )
        if is_leased(place):
            yield Finding(NOTE, "GPU", f"{text}; another run holds it")
            continue
        try:
            square = torch.ones(16, 16, dtype=torch.half, device=place)
            (square @ square).sum().item()
            yield Finding(OK, "GPU", text)
        except RuntimeError as error:  # a torch that is not built for it, no memory
            yield Finding(MISSING, "GPU", f"{text}; cannot compute: {str(error).splitlines()[0]}")
    yield Finding(OK, "GPU", f"CUDA {torch.version.cuda}; {gpu_facts()}")


def _kernels() -> Iterator[Finding]:
    import torch

    have = util.find_spec("triton") is not None
    lacks = torch.cuda.is_available() and not have
    text = "triton is installed" if have else "no triton; a GPU in half precision is slow without"
    flash = "is" if util.find_spec("flash_attn") else "is not"
    text += f"; flash-attn {flash}, and no run needs it"
    yield Finding(NOTE if lacks else OK, "kernels", text)


def _processor() -> Iterator[Finding]:
    seen, quota = len(os.sched_getaffinity(0)), cpu_quota()
    text = f"{seen} of {os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}"
    few = quota is not None and quota < seen
    if few:
        text += f"; its control group allows {quota:.1f}, so {cores()} thread(s) compute"
    yield Finding(NOTE if few else OK, "processor", text)


def _memory() -> Iterator[Finding]:
    have = memory()
    short = have < LEAST_MEMORY
    text = f"{in_bytes(have)} for this process" + ("; 2 GB is the least for mini" if short else "")
    yield Finding(NOTE if short else OK, "memory", text)
    shm = Path("/dev/shm")
    if os.access(shm, os.W_OK):
        yield Finding(OK, "memory", f"{in_bytes(free_disk(shm))} free in {shm}; kilobytes will do")
    else:
        yield Finding(NOTE, "memory", f"{shm} cannot be written, as several GPUs at once need")


def _limits() -> Iterator[Finding]:
    files, space = (
        resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS)
    )
    low = files < LEAST_FILES
    text = f"{files} open files" + (f"; raise it: ulimit -n {LEAST_FILES}" if low else "")
    yield Finding(NOTE if low else OK, "limits", text)
    if space != resource.RLIM_INFINITY:
        text = f"ulimit -v is {in_bytes(space)}: libraries are loaded twice, which costs seconds"
        yield Finding(NOTE, "limits", text)


def _output(folder: Path) -> Iterator[Finding]:
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    free = free_disk(there)
    low = free < LEAST_DISK
    text = f"{in_bytes(free)} free in {there}" + ("; see `virnucpro estimate`" if low else "")
    yield Finding(NOTE if low else OK, "output", text)
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".virnucpro-") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield Finding(OK, "output", "can be written, has locks")
            except OSError as error:
                text = f"has no locks ({error.strerror}): keep two runs apart yourself"
                yield Finding(NOTE, "output", text)
    except OSError as error:
        text = f"{there}: cannot be written ({error.strerror}); name another with --output"
        yield Finding(MISSING, "output", text)


def _models(models_dir: Path | None) -> Iterator[Finding]:
    from virnucpro_core.errors import VirNucProError
    from virnucpro_core.models.store import list_models, models_folder, resolve_model

    where = models_folder(models_dir)
    if where is None:
        yield Finding(NOTE, "models", "no --models-dir, no $VIRNUCPRO_MODELS: mini alone")
    elif not where.is_dir():
        yield Finding(NOTE, "models", f"{where} is no folder; `virnucpro models fetch` makes it")
    try:
        names = [model.name for model in list_models(models_dir)]
    except VirNucProError as error:
        yield Finding(NOTE, "models", str(error))
        names = ["mini"]
    for name in names:
        try:
            model = resolve_model(name, models_dir)
            yield Finding(OK, "models", f"{name}: windows of {model.window}, {model.folder}")
        except VirNucProError as error:
            yield Finding(MISSING if name == "mini" else NOTE, "models", str(error))


def _pipeline() -> Iterator[Finding]:
    for name, option, where in (
        ("java", "-version", "17 or newer has to be installed"),
        ("nextflow", "-version", "`make setup` fetches it; ./nextflow finds that one"),
    ):
        path = shutil.which(name)
        if path is None:
            text = f"no {name} on PATH, which the pipeline alone needs: {where}"
            yield Finding(NOTE, "pipeline", text)
            continue
        said = subprocess.run([path, option], capture_output=True, text=True, timeout=20)
        words = [line.strip() for line in (said.stdout + said.stderr).splitlines()]
        version = next((line for line in words if "version" in line), f"exit {said.returncode}")
        yield Finding(OK if not said.returncode else NOTE, "pipeline", f"{path}: {version}")


def _locale() -> Iterator[Finding]:
    encoding = locale.getencoding()
    good = encoding.upper().replace("-", "") == "UTF8"
    text = encoding if good else f"{encoding}: Java needs UTF-8, export LC_ALL=C.UTF-8"
    yield Finding(OK if good else NOTE, "locale", text)
