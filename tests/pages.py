"""Folders as `classify` leaves them, their page, and what a reader of it finds."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from virnucpro_core.results.calls import REASONS
from virnucpro_core.results.criteria import Criteria
from virnucpro_core.results.pagedata import CONTIG_COLUMNS
from virnucpro_core.results.report import write_report
from virnucpro_core.schema import CONTIGS

Row = tuple[str, int, str, float | None]


CRITERIA = Criteria("balanced", 0.5, None, 0, 150, None)


def classified(folder: Path, rows: list[Row], name: str = "S", **changes: Any) -> Path:
    """A folder as `classify` leaves it, of contigs given as (id, length, call or reason, score)."""
    folder.mkdir(parents=True)
    lines = ["\t".join(CONTIGS.names)]
    calls: Counter[str] = Counter()
    for contig, length, call, score in rows:
        calls[call] += 1
        if score is None:
            lines.append(f"{contig}\t{length}\t1\t0\t0\t0\t0" + "\t" * 7 + f"0\tno_call\t{call}")
        else:
            viral = int(call == "virus")
            lines.append(
                f"{contig}\t{length}\t1\t1\t2\t{length}\t{viral}\t{viral}.0\t{score}\t{score}\t"
                f"{score}\t\t\t{viral}\t{call}\t"
            )
    (folder / "contigs.tsv").write_text("\n".join(lines) + "\n")
    no_call = {reason: calls[reason] for reason in REASONS}
    summary = {
        "format": 1,
        "sample": name,
        "model": "mini",
        "window": 500,
        "genetic_code": "1",
        "weights": {"classifier.safetensors": "ab" * 32},
        "precision": "fp32",
        "packed": True,
        "version": "9.9.9",
        "criteria": CRITERIA.record(),
        "prevalence": {"share": None, "source": None, "contigs": 9},
        "contigs": {
            "total": len(rows),
            "virus": calls["virus"],
            "other": calls["other"],
            "no_call": sum(no_call.values()),
        },
        "no_call": no_call,
        "windows": {"total": len(rows), "called": len(rows), "virus": calls["virus"]},
        "frames": {"total": 2 * len(rows), "virus": 0},
        "bases": {"total": sum(row[1] for row in rows), "virus": 0},
    }
    (folder / "summary.json").write_text(json.dumps({**summary, **changes}))
    return folder


ROWS: list[Row] = [
    ("phage", 48502, "virus", 0.98772),
    ("host", 9000, "other", 0.0123),
    ("tiny", 2, "too_short", None),
    ("closed", 700, "no_stop_free_frame", None),
]


class Page(HTMLParser):
    """Checks that tags are balanced; keeps what tests ask for."""

    VOID = frozenset({"meta", "br", "input", "link", "img", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.data: dict[str, str] = {}
        self.script = ""
        self._block = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert len(given) == len(attrs), f"an attribute twice in {tag}"
        self.attributes.append((tag, given))
        if tag == "script":
            self._block = given.get("id") or ""
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script" and self._block:
            self.data[self._block] = self.data.get(self._block, "") + data
        elif self.open and self.open[-1] == "script":
            self.script += data
        elif not self.open or self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))

    @property
    def about(self) -> dict[str, Any]:
        about: dict[str, Any] = json.loads(self.data["about"])
        return about

    def block(self, name: str) -> bytes:
        return gzip.decompress(base64.b64decode(self.data[f"data-{name}"]))

    @property
    def contigs(self) -> list[dict[str, Any]]:
        """What the page's script makes of the data: a row a contig, in the order of the page."""
        n, whole, at = self.about["contigs"], self.block("contigs"), 0
        columns: dict[str, list[Any]] = {"contig": self.block("names").decode().split("\n")}
        for name, kind in CONTIG_COLUMNS.items():
            assert at % int(kind[1]) == 0, "a typed array begins at a multiple of its values' size"
            columns[name] = np.frombuffer(whole, f"<{kind}", n, at).tolist()
            at += n * int(kind[1])
        assert at == len(whole)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def report(outs: list[Path], path: Path, **options: Any) -> Page:
    write_report(outs, path, **options)
    return Page(path.read_text(encoding="utf-8"))
