"""Small files that others wrote, which may hold anything, or be none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from virnucpro_core.errors import ModelError
from virnucpro_core.files import blame_machine

MAX_JSON = 64 << 20
"""Bytes; the largest of a model's, a tokenizer of a large vocabulary, has some 10 MB."""


def unreadable(path: Path, error: OSError) -> ModelError:
    """What to raise for a file of a model that cannot be opened or read.

    Raises MachineError itself where the machine is at fault.
    """
    blame_machine(error, path)
    return ModelError(f"{path}: cannot be read ({error.strerror or error}); check the path.")


def read_small(path: Path) -> bytes:
    """Content of a file of at most MAX_JSON bytes; ModelError for what is none, such as a pipe."""
    try:
        if path.exists() and not path.is_file():
            raise ModelError(f"{path}: is no file; fetch the model again.")
        if path.stat().st_size > MAX_JSON:
            raise ModelError(f"{path}: has more than {MAX_JSON >> 20} MiB; fetch the model again.")
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ModelError when it is missing or holds anything else."""
    content = read_small(path)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON ({error}); fetch the model again.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds no JSON object; fetch the model again.")
    return value
