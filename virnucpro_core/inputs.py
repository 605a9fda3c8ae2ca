"""What a run was given: by it a folder's work and results are known again, or as another's."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from virnucpro_core.errors import InputError
from virnucpro_core.files import blamed

Input = list[dict[str, Any]]
"""Of each file its `name`, its `bytes`, and the `sha256` of its content, None for a pipe."""

RECORD = ".input.json"
"""The file that says in a folder whose work it holds, from the beginning on."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")


def missing(path: Path) -> InputError:
    """What to raise for a file that is not there; it may be a URL, which Path makes `https:/…`."""
    if not _URL.match(str(path)):
        return InputError(f"{path}: no such file; check the path.")
    url = _URL.sub(r"\1://", str(path), count=1)
    return InputError(
        f"{url}: is a URL, and this command reads files; fetch it first, or give it to the "
        "pipeline, which fetches it."
    )


def identify(paths: Sequence[Path]) -> Input:
    """What says whether files are the same as before; reads each to its end, but no pipe."""
    given = []
    for path in paths:
        if not path.exists():
            raise missing(path)
        about: dict[str, Any] = {"name": path.name, "bytes": None, "sha256": None}
        if path.is_file():
            try:
                with blamed(path), path.open("rb") as handle:
                    about["sha256"] = hashlib.file_digest(handle, "sha256").hexdigest()
                    about["bytes"] = handle.tell()
            except PermissionError:
                raise InputError(
                    f"{path}: may not be read; ask its owner for permission."
                ) from None
        given.append(about)
    return given


def same(one: object, other: object) -> bool:
    """Whether two inputs have the same content in the same order; what came by a pipe never has."""
    digests = [
        [part.get("sha256") for part in given if isinstance(part, dict)]
        if isinstance(given, list)
        else []
        for given in (one, other)
    ]
    return digests[0] == digests[1] and bool(digests[0]) and all(digests[0])


def read_record(folder: Path) -> object:
    """The input whose work a folder holds, as it was recorded; None where there is no record."""
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
