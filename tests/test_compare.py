"""Two runs, or a run and another tool: who agrees, which contigs flipped, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_options import Run, sees

HEADER = [
    *("contig", "length", "windows", "frames", "viral_windows", "viral_fraction", "call", "reason")
]


def results(folder: Path, rows: str, *, header: list[str] = HEADER) -> Path:
    """A folder of results with these contigs; cells are parted by blanks, `-` is an empty one."""
    folder.mkdir(exist_ok=True)
    lines = [header, *(row.split() for row in rows.strip().splitlines())]
    text = "".join("\t".join("" if c == "-" else c for c in line) + "\n" for line in lines)
    (folder / "contigs.tsv").write_text(text)
    (folder / "summary.json").write_text(json.dumps({"model": folder.name, "precision": "fp32"}))
    return folder


A = """
agreed    2000 4 4 4 1.0  virus   -
other     400  1 1 0 0.0  other   -
lost      700  2 3 2 1.0  virus   -
near      700  2 3 1 0.5  virus   -
same      700  2 3 1 0.5  virus   -
silent    900  2 2 2 1.0  virus   -
single    300  1 1 1 1.0  virus   -
rewritten 900  2 2 2 1.0  virus   -
gone      50   1 0 0 -    no_call no_stop_free_frame
mine      50   1 1 1 1.0  virus   -
"""
B = """
other     400  1 1 0 0.0  other   -
agreed    2000 4 4 4 1.0  virus   -
lost      700  2 3 0 0.0  other   -
near      700  2 3 1 0.45 other   -
same      700  2 3 1 0.5  other   -
silent    900  2 0 0 -    no_call little_evidence
single    300  1 1 0 0.0  other   -
rewritten 900  3 4 0 0.0  other   -
gone      50   1 1 0 0.1  other   -
"""


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return results(tmp_path / "a", A), results(tmp_path / "b", B)


@sees("compare", "--output", "--json", "--show")
def test_two_runs_agree_flip_and_say_why(
    ask: Callable[..., str], two: tuple[Path, Path], tmp_path: Path
) -> None:
    files = ["--output", tmp_path / "flips.tsv", "--json", tmp_path / "c.json"]
    said = ask("compare", *two, *files, "--show", 1)
    about = json.loads((tmp_path / "c.json").read_text())
    assert (about["contigs"], about["alone"]) == (9, {"a": 1, "b": 0})
    assert about["agreement"] == 3 / 9
    # by chance 7/9 · 1/9 + 2/9 · 8/9 agree
    assert about["kappa"] == pytest.approx((3 / 9 - 23 / 81) / (1 - 23 / 81))
    assert about["calls"]["virus"] == {"virus": 1, "other": 5, "no_call": 1}
    assert about["calls"]["no_call"] == {"virus": 0, "other": 1, "no_call": 0}
    assert about["a"]["lowest_score_of_a_virus"] == 0.5
    lengths = {part["from"]: part["contigs"] for part in about["by_length"]}
    assert lengths == {0: 3, 500: 5, 1000: 1}
    header, *rows = [line.split("\t") for line in (tmp_path / "flips.tsv").read_text().splitlines()]
    assert {row[0]: row[-1] for row in rows} == {
        "lost": "another score",
        "near": "scores within 0.1 of each other",
        "same": "the same score, another threshold",
        "silent": "no call in B: little_evidence",
        "single": "rests on a single window or frame",
        "rewritten": "other frames",
    }
    assert [row[0] for row in rows] == ["rewritten", "lost", "single", "near", "same", "silent"]
    assert dict(zip(header, rows[5], strict=True))["score_b"] == ""
    assert "33.3%, kappa 0.07" in said
    assert "6 contigs flipped" in said
    assert "A: " in said
    assert "rewritten" in said
    assert "silent" not in said


def test_score_of_later_tables_is_compared_with_scored_windows(
    ask: Callable[..., str], tmp_path: Path
) -> None:
    header = [*HEADER[:4], "scored_windows", "score", "more", *HEADER[-2:]]
    a = results(tmp_path / "a", "c 700 2 3 2 0.93 x virus -", header=header)
    b = results(tmp_path / "b", "c 700 2 3 2 0.21 x other -", header=header)
    assert "virus 0.930 (2)   other 0.210 (2)   another score" in ask("compare", a, b)


GENOMAD = """seq_name\tlength\ttopology\tvirus_score\tfdr
agreed\t2000\tNo terminal repeats\t0.97\tNA
gone\t50\tNo terminal repeats\t0.81\tNA
lost|provirus_1_600\t600\tProvirus\t0.9\tNA
"""
VIRSORTER = """seqname\tdsDNAphage\tmax_score\tmax_score_group
agreed||full\t0.9\t0.90\tdsDNAphage
gone||lt2gene\tnan\tnan\tdsDNAphage
lost||0_partial\t0.9\t0.9\tdsDNAphage
lost||1_partial\t0.9\t0.8\tdsDNAphage
"""


@pytest.mark.parametrize(("tool", "text"), [("geNomad", GENOMAD), ("VirSorter2", VIRSORTER)])
def test_table_of_viruses_alone_is_compared_with_a_run(
    tool: str, text: str, ask: Callable[..., str], two: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "t.tsv").write_text(text)
    out = tmp_path / "c.json"
    ask("compare", two[0], tmp_path / "t.tsv", "--json", out)
    about = json.loads(out.read_text())
    assert about["b"]["tool"] == tool
    assert (about["contigs"], about["alone"]) == (10, {"b": 0})
    assert about["calls"]["virus"] == {"virus": 1, "other": 7, "no_call": 0}
    assert about["why"] == {
        "not listed in B": 4,
        "rests on a single window or frame": 2,
        "a provirus in B": 1,
        "no call in A: no_stop_free_frame": 1,
    }
    ask("compare", tmp_path / "t.tsv", two[0], "--json", out)
    turned = json.loads(out.read_text())
    assert turned["kappa"] == about["kappa"]
    assert turned["flipped"] == about["flipped"]
    ask("compare", *[tmp_path / "t.tsv"] * 2, "--json", out)
    assert json.loads(out.read_text())["agreement"] == 1


@sees("compare", "--columns", "--min-score")
def test_columns_of_an_unknown_table_are_named(
    ask: Callable[..., str], run: Run, two: tuple[Path, Path], tmp_path: Path
) -> None:
    table, out = tmp_path / "t.tsv", tmp_path / "c.json"
    table.write_text("name\tvalue\nagreed\t0.9\nlost\t0.6\n")

    def both(*options: object) -> int:
        ask("compare", two[0], table, "--columns", "name,value", *options, "--json", out)
        about: dict[str, Any] = json.loads(out.read_text())
        virus: int = about["calls"]["virus"]["virus"]
        return virus

    assert both() == 2
    assert both("--min-score", "0.7") == 1
    assert "--columns: name two" in run("compare", two[0], table, "--columns", "name")[2]


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("nothing.tsv", "no such file"),
        ("empty", "holds no finished results"),
        ("text.tsv", "has neither the columns contig and call"),
        ("void.tsv", "is no table parted by tabs"),
        ("old", "has no scores of this version"),
        ("odd", "a call is none"),
        ("twice", "has a contig twice"),
        ("strange", "no contig in common"),
        ("word", "is no table parted by tabs"),
    ],
)
def test_what_holds_no_calls_is_refused_in_one_sentence(
    what: str, sentence: str, run: Run, two: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tsv").write_text("a\tb\n1\t2\n")
    (tmp_path / "void.tsv").touch()
    results(tmp_path / "old", "agreed 2000 virus", header=["contig", "length", "call"])
    results(tmp_path / "odd", "agreed 2000 4 4 4 1.0 maybe -")
    results(tmp_path / "twice", "agreed 2000 4 4 4 1.0 virus -\n" * 2)
    results(tmp_path / "strange", "z 2000 4 4 4 1.0 virus -")
    results(tmp_path / "word", "agreed 2000 4 4 4 high virus -")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, _, err = run("compare", two[0], tmp_path / what, "-o", tmp_path / "flips.tsv")
    assert code == 2
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_output_in_the_place_of_a_table_is_refused(run: Run, two: tuple[Path, Path]) -> None:
    before = (two[0] / "contigs.tsv").read_bytes()
    code, _, err = run("compare", *two, "-o", two[0] / "contigs.tsv")
    assert code == 2
    assert "is an input" in err
    assert (two[0] / "contigs.tsv").read_bytes() == before
