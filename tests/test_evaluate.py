"""`evaluate` measures a model and other tools' tables on one set of labelled contigs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow.csv as pacsv
import pytest
import torch
from test_options import Run
from tiny import coding

from virnucpro_core.lab.evaluate import FILES, model_levels, rows, table_level, windows_by
from virnucpro_core.lab.heldout import Labelled
from virnucpro_core.lab.othertool import Table
from virnucpro_core.models.store import Model
from virnucpro_core.sequences.fasta import Contig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def labelled() -> Labelled:
    """Eight groups of two contigs; the last contig has no stop-free frame."""
    rng = np.random.default_rng(0)
    kinds = ("phage", "phage", "plasmid", "prokaryote")
    contigs = [
        Contig(f"g{n // 2}#{n}", kinds[n // 4], coding(rng, "GC", 70 + 20 * n).encode())
        for n in range(16)
    ]
    contigs[15] = contigs[15]._replace(sequence=b"TAATTAA" * 60)
    return Labelled(contigs, frozenset(contig.id for contig in contigs[:8]))


@pytest.fixture
def files(labelled: Labelled, tmp_path: Path) -> list[object]:
    """The options that give these contigs."""
    words: list[object] = []
    for name, viral in (("virus", True), ("other", False)):
        path = tmp_path / f"{name}.fa"
        path.write_text(
            "".join(
                f">{one.id} {one.description}\n{one.sequence.decode()}\n"
                for one in labelled.contigs
                if (one.id in labelled.viral) == viral
            )
        )
        words += [f"--{name}", path]
    return words


def by_subset(table: list[dict[str, Any]], level: str = "contig") -> dict[str, dict[str, Any]]:
    return {row["subset"]: row for row in table if row["level"] == level}


def test_a_kind_is_measured_against_all_of_the_other_class(labelled: Labelled) -> None:
    score = {one.id: 0.9 if one.description == "plasmid" else 0.5 for one in labelled.contigs}
    table = by_subset(rows(labelled, [table_level(labelled, Table("t", score))], [300]))
    assert table["all"]["auc"] == 0.25
    assert [table[f"kind {kind}"]["auc"] for kind in ("plasmid", "prokaryote")] == [0, 0.5]
    numbers = {name: (row["number"], row["viral"]) for name, row in table.items()}
    assert numbers["kind plasmid"] == numbers["kind prokaryote"] == (12, 8)
    assert numbers["kind phage"] == numbers["all"] == (16, 8)
    assert table["all"]["groups"] == 8


def test_bins_part_the_contigs_by_length(labelled: Labelled) -> None:
    score = {one.id: 0.5 for one in labelled.contigs}
    table = by_subset(rows(labelled, [table_level(labelled, Table("t", score))], [300, 500]))
    lengths = [len(one.sequence) for one in labelled.contigs]
    for name, low, high in (("1-299", 1, 300), ("300-499", 300, 500), ("500-", 500, 9999)):
        number = sum(low <= length < high for length in lengths)
        assert table[f"length {name}"]["number"] == number > 0


def test_contigs_without_a_score_rank_last_and_are_no_calls(labelled: Labelled) -> None:
    score = {one.id: 0.9 for one in labelled.contigs if one.id in labelled.viral}
    score |= {labelled.contigs[0].id: np.nan, labelled.contigs[-1].id: 0.1}
    table = by_subset(rows(labelled, [table_level(labelled, Table("t", score))], [300]))
    assert (table["all"]["number"], table["all"]["scored"]) == (16, 8)
    assert table["all"]["auc"] == pytest.approx((7 + 7 / 16) / 8, abs=1e-4)
    assert (table["all"]["sensitivity"], table["all"]["false_positives"]) == (0.875, 0)
    assert (table["scored"]["number"], table["scored"]["auc"]) == (8, 1)


def test_scores_that_are_no_probabilities_have_ranks_alone(labelled: Labelled) -> None:
    score = {one.id: 3.0 * (one.id in labelled.viral) - 1 for one in labelled.contigs}
    row = by_subset(rows(labelled, [table_level(labelled, Table("t", score))], [300]))["all"]
    assert row["auc"] == 1
    assert {name for name, value in row.items() if value is None} >= {"f1", "mcc", "brier"}


def test_a_model_s_rows_are_its_calls_of_contigs_and_windows(
    labelled: Labelled, tiny: Model
) -> None:
    calls = windows_by(tiny, labelled, CPU)
    table = rows(labelled, model_levels(tiny, labelled, calls), [300])
    contigs, windows = by_subset(table), by_subset(table, "window")
    assert (contigs["all"]["number"], contigs["all"]["scored"]) == (16, 15)
    assert windows["all"]["number"] == len(calls.contig) > 16
    called = calls.is_virus[labelled.truth[calls.contig]]
    assert windows["all"]["sensitivity"] == pytest.approx(called.mean(), abs=1e-4)


def test_evaluate_writes_table_json_and_pictures_that_agree(
    files: list[object], ask: Callable[..., str], model: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = ask("evaluate", *files, *model, "--output", out)
    assert {path.name for path in out.iterdir()} == set(FILES)
    about = json.loads((out / "evaluation.json").read_text())
    assert about["prevalence"] == 0.5
    tsv = pacsv.read_csv(
        out / "evaluation.tsv", parse_options=pacsv.ParseOptions(delimiter="\t")
    ).to_pylist()
    assert tsv == about["rows"]
    assert len(said.splitlines()) == len(tsv) + 2
    assert "50.0% viral" in said
    for name in FILES[2:]:
        ElementTree.parse(out / name)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("contig\tscore\ng0#0\t0.25\ng7#15 plasmid\t\n", ""),
        ("seq_name,virus_score,score_2\ng0#0,0.25,7\n\ng7#15,NA,8\n", ""),
        ("\ufeffA\tContig\tB\n0.25\tg0#0\t1\nnan\tg7#15\t2\n", ":contig,a"),
    ],
)
def test_a_table_s_columns_are_known_or_named(text: str, columns: str, tmp_path: Path) -> None:
    path = tmp_path / "a:b.tsv"
    path.write_text(text, encoding="utf-8")
    table = Table.read(f"x={path}{columns}")
    assert table.tool == "x"
    assert table.scores == pytest.approx({"g0#0": 0.25, "g7#15": np.nan}, nan_ok=True)


@pytest.mark.parametrize(
    ("given", "text", "said"),
    [
        ("FILE", "contig\tscore\n", "give NAME=FILE or NAME=FILE:CONTIG,SCORE"),
        ("t=FILE", "name\tp\n", "has no column 'score' or .* but 'name', 'p'; name two of them"),
        ("t=FILE:name,q", "name\tp\n", "has no column 'q' but 'name', 'p'; name two of them"),
        ("t=FILE", "", "has no column 'contig' or .*; name two"),
        ("t=FILE", "contig\tscore\ng0#0\thigh\n", "line 2 has no contig and number in columns 1"),
        ("t=FILE", "contig\tscore\ng0#0\n", "line 2 has no contig and number"),
        ("t=FILE", "contig\tscore\ng0#0\t1\ng0#0\t1\n", "contig 'g0#0' is there twice"),
        ("t=FILE", "contig\tscore\nother\t1\n", "has a score of none of the contigs"),
        ("t=FILE", b"\xff\xfe\x00", "is no TSV or CSV"),
        ("t=https://example.org/t.tsv", "", "is a URL"),
        ("t=absent.tsv", "", "absent.tsv: no such file"),
    ],
)
def test_a_table_that_cannot_be_read_exits_2_and_leaves_nothing(
    given: str,
    text: str | bytes,
    said: str,
    run: Run,
    model: list[object],
    files: list[object],
    tmp_path: Path,
) -> None:
    path = tmp_path / "table.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    words = ["--table", given.replace("FILE", str(path)), "-o", tmp_path / "out"]
    code, _, err = run("evaluate", *files, *model, *words)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert re.search(said, err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bins", ["", "0", "500,300", "300,300", "3k", "300,"])
def test_bins_that_do_not_rise_exit_2(
    bins: str, run: Run, model: list[object], files: list[object]
) -> None:
    code, _, err = run("evaluate", *files, *model, "--bins", bins)
    assert code == 2
    assert "give rising lengths" in err
