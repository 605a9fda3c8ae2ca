"""A command on a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import NamedTuple


class Seen(NamedTuple):
    """What a command wrote to its standard output, which was a file, and drew on its terminal."""

    code: int
    out: str
    drawn: str

    @property
    def text(self) -> str:
        """What was drawn, without colours and movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.drawn)


PROGRAM = ("-m", "virnucpro_core.cli")


def on_terminal(
    *arguments: object,
    folder: Path,
    program: tuple[str, str] = PROGRAM,
    stop_at: str = "",
    **environment: str,
) -> Seen:
    """Run virnucpro, or another program in Python, with a terminal for its standard error.

    stop_at: once this is drawn, the program gets a SIGTERM.
    """
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    plain = {name: text for name, text in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    with (folder / "stdout").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            stdout=out,
            stderr=its,
            env={**plain, "TERM": "xterm-256color", **environment},
        )
    os.close(its)
    drawn = b""
    try:
        while part := os.read(ours, 65536):
            drawn += part
            if stop_at and stop_at.encode() in drawn:
                process.terminate()
                stop_at = ""
    except OSError:  # so a terminal ends whose last program has
        pass
    os.close(ours)
    return Seen(process.wait(), (folder / "stdout").read_text(), drawn.decode())
