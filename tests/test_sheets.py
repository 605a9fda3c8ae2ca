"""Sheets of samples: read, or refused with the line that is wrong."""

from __future__ import annotations

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_nextflow import BARE, NEXTFLOW, ROOT, nextflow, pipeline

pytestmark = pytest.mark.skipif(NEXTFLOW is None, reason="no Nextflow: run make setup")

# Reads every sheet of a folder as the pipeline does, and says what it got or how it was refused.
READ_SHEETS = f"""
include {{ readInput }} from '{ROOT}/subworkflows/local/utils_virnucpro_input'
workflow {{
    file("${{launchDir}}/sheets/*").each {{ sheet ->
        def said = null
        try {{
            said = readInput("${{sheet}}", workflow.workDir)
            said = said.collect {{ meta, fastas -> [meta, fastas*.name] }}
        }}
        catch (Exception refusal) {{
            said = (refusal.cause ?: refusal).message
        }}
        println("READ ${{groovy.json.JsonOutput.toJson([sheet.name, said])}}")
    }}
}}
"""
SHEETS: dict[str, tuple[bytes, str | list[Any]]] = {
    "empty.csv": (b"", "line 1: the columns must be sample,fasta"),
    "header.csv": (b"sample,fasta\n", "line 2: no samples"),
    "short.csv": (
        b"sample,fasta\na,here.fa\nb\n",
        "line 3: expected two cells, sample and fasta; got 'b'.",
    ),
    "long.csv": (b"sample,fasta\na,b,c\n", "line 2: expected two cells, sample and fasta; got"),
    "gone.csv": (b"sample,fasta\na,gone.fa\n", "line 2: no such file"),
    "glob.csv": ("\ufeffsample,fasta\r\na,*.fa\r\n".encode(), "line 2: no such file"),
    "above.csv": (b"sample,fasta\n../a,here.fa\n", "line 2: '../a' can't name a folder"),
    "report.csv": (b"sample,fasta\nreport,here.fa\n", "line 2: 'report' can't name a folder"),
    "name.csv": (
        b"sample,fasta\n" + b"x" * 240 + b",here.fa\n",
        "can't name a folder; use up to 200 letters",
    ),
    "bars.csv": (b"sample|fasta\n", "others, if any, have names of their own and not id; got 'sa"),
    "id.csv": (b"sample,fasta,id\n", "line 1: the columns must be"),
    "twice.csv": (
        b"sample,fasta\na,here.fa\na,here.fa\n",
        "line 3: sample 'a' has here.fa already",
    ),
    "utf16.csv": ("sample,fasta\n".encode("utf-16"), "is not UTF-8; save it as"),
    # A byte order mark, Windows line ends, and what would be a glob elsewhere.
    "excel.csv": (
        "\ufeffsample,fasta\r\na,run [1] of *.fa\r\n".encode(),
        [[{"id": "a"}, ["run [1] of *.fa"]]],
    ),
    "commas.csv": (b"sample,fasta,\na,here.fa,\n,,\n", [[{"id": "a"}, ["here.fa"]]]),
    "extra.CSV": (
        b"site,fasta,sample\ngut,here.fa,a\n",
        [[{"id": "a", "site": "gut"}, ["here.fa"]]],
    ),
    "tabs.tsv": (b"sample\tfasta\na\there.fa\n", [[{"id": "a"}, ["here.fa"]]]),
    "tabs.csv": (
        "sample\tfasta\tsite\na\t\u00e4.fa\tgut, left\n".encode(),
        [[{"id": "a", "site": "gut, left"}, ["\u00e4.fa"]]],
    ),
    "semicolons.csv": (b'sample;fasta\na;"he;re.fa"\n', [[{"id": "a"}, ["he;re.fa"]]]),
    "shell.csv": (b"sample,fasta\na,$HOME'.fa\n", [[{"id": "a"}, ["_HOME_.fa"]]]),
}


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the pipeline makes of each sheet, read in a run without a locale, as cron starts it."""
    folder = tmp_path_factory.mktemp("read")
    (folder / "sheets").mkdir()
    for fasta in ("here.fa", "run [1] of *.fa", "\u00e4.fa", "he;re.fa", "$HOME'.fa"):
        (folder / fasta).write_text(">c\nACGT\n")
        (folder / "sheets" / fasta).symlink_to(folder / fasta)
    for name, (text, _) in SHEETS.items():
        (folder / "sheets" / name).write_bytes(text)
    script = READ_SHEETS.replace("sheets/*", "sheets/*.{csv,CSV,tsv}")
    (folder / "read.nf").write_text(script)
    run = nextflow(folder, "run", "read.nf", **BARE)
    return dict(json.loads(line[5:]) for line in run.stdout.splitlines() if line[:5] == "READ ")


@pytest.mark.parametrize("name", SHEETS)
def test_sheet_is_read_or_refused_with_its_line(name: str, read: dict[str, Any]) -> None:
    expected = SHEETS[name][1]
    if isinstance(expected, str):
        assert f"{name}" in read[name]
        assert expected in read[name]
    else:
        assert read[name] == expected


def test_paths_of_a_remote_sheet_are_relative_to_it(tmp_path: Path) -> None:
    """A stand-in for a bucket: there too, the text of a path says only half of where it lies."""
    (tmp_path / "s.csv").write_text("sample,fasta\na,fasta/a.fa\n")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        run = pipeline(tmp_path, "-stub", "--input", f"{address}/s.csv")
        server.shutdown()
    assert f"s.csv line 2: no such file {address}/fasta/a.fa" in run.stdout
