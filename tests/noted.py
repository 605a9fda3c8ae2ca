"""The command line, which notes when it hears signals, and the frames that each process embeds."""

from __future__ import annotations

import os
from typing import Any

import typer

from virnucpro_core import cli


def note(what: str) -> None:
    """Append a line to the file that $NOTES names, where a kill does not reach it."""
    file = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{os.getpid()} {what}\n".encode())
    os.close(file)


def note_embedding() -> None:
    from virnucpro_core.embedding import journal

    journal.FLUSH_SECONDS = float(os.environ["FLUSH_SECONDS"])
    add, flush = journal.RowWriter.add, journal.RowWriter._flush

    def noted_add(self: journal.RowWriter, rows: Any, embedding: Any) -> None:
        note(f"added {len(rows)}")
        add(self, rows, embedding)

    def noted_flush(self: journal.RowWriter) -> None:
        flush(self)
        note("flushed 0")

    journal.RowWriter.add, journal.RowWriter._flush = noted_add, noted_flush  # type: ignore[method-assign]


def main() -> None:
    assemble = typer.main.get_command

    def noted(app: typer.Typer) -> Any:
        note("listens 0")
        note_embedding()
        return assemble(app)

    typer.main.get_command = noted  # type: ignore[assignment]
    cli.main()


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # a worker that is spawned
    note_embedding()
