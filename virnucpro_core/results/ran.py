"""What ran: the command, when, for how long and on which versions, as summary.json has it."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from virnucpro_core.version import __version__


def ran(seconds: Mapping[str, float]) -> dict[str, Any]:
    """A record of this process; seconds: how long each of its stages took.

    command: None where the caller is no command of ours, but Python.
    """
    import torch  # the page, which only reads such records, does without

    versions = {"virnucpro": __version__, "python": platform.python_version()}
    versions["torch"] = str(torch.__version__)
    if torch.version.cuda is not None:
        versions["cuda"] = torch.version.cuda
    return {
        "command": _command(),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": {stage: round(spent, 1) for stage, spent in seconds.items()},
        "versions": versions,
    }


def _command() -> str | None:
    program = Path(sys.argv[0])
    own = program.name == "virnucpro" or Path(__file__).parents[1] in program.absolute().parents
    return shlex.join(["virnucpro", *sys.argv[1:]]) if own else None


def read_ran(said: Any) -> list[dict[str, Any]]:
    """What a summary.json has, of nothing else than text and numbers; [] where it has none.

    Raises ValueError, TypeError or LookupError for anything else.
    """
    return [
        {
            "command": None if one["command"] is None else str(one["command"]),
            "date": datetime.fromisoformat(one["date"]).strftime("%Y-%m-%d %H:%M UTC"),
            "seconds": {str(stage): float(spent) for stage, spent in dict(one["seconds"]).items()},
            "versions": {str(name): str(which) for name, which in dict(one["versions"]).items()},
        }
        for one in said or ()
    ]
