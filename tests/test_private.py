"""What others on the machine may read of a run, and how far what an input says may reach."""

from __future__ import annotations

import ast
import os
import stat
from pathlib import Path

import pytest
from sample import OPEN, Sample, viral

import virnucpro_core as vnp
from virnucpro_core import one_process
from virnucpro_core.results.report import write_report
from virnucpro_core.results.tables import RESULTS
from virnucpro_core.sequences.translate import translate

PACKAGE = Path(__file__).parents[1] / "virnucpro_core"
PRIVATE = {"TemporaryDirectory", "TemporaryFile", "NamedTemporaryFile"}
IDS = (
    *("v../../evil", "/v/absolute", "v/../..", "..", ".", "~", "v$(touch", "v`touch", "v;touch"),
    *(
        "-o",
        "--output=v",
        "v|touch",
        "v\\..\\evil",
        "C:\\v",
        "v%2e%2e%2f",
        "vé/..",
        "v*?[a]",
        "con",
    ),
)


def test_a_run_s_temporary_folder_is_its_user_s_alone(
    three: Path, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    modes: list[int] = []

    def seen(*_: object, **__: object) -> None:
        modes.extend(stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(one_process, "embed", seen)
    before = os.umask(0)
    try:
        with pytest.raises(KeyboardInterrupt):
            vnp.predict(three, "tiny", models_dir=models_dir)
    finally:
        os.umask(before)
    assert modes == [0o700]
    assert not list(tmp_path.iterdir())


def test_temporary_files_are_made_by_what_makes_them_private() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "tempfile":
                assert {name.name for name in node.names} <= PRIVATE, path
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "tempfile":
                assert node.attr in PRIVATE, path
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                # locks of GPUs are everybody's
                assert "/tmp" not in node.value or path.name == "devices.py", path


def test_ids_of_any_kind_reach_no_path(tmp_path: Path) -> None:
    folder = tmp_path / "in/side"
    folder.mkdir(parents=True)
    fasta = "".join(f">{name} ../{name}\n{OPEN * 2}\n" for name in IDS)
    sample = Sample(folder, fasta, viral, shard_bp=200)
    translate([folder / "in.fa"], folder / "all.parquet", 30, folder / "original")
    table = sample.classify(sample="../../evil")
    write_report([folder / "out"], folder / "page/report.html")
    assert table["contig"].to_pylist() == list(IDS)
    assert table["call"].to_pylist().count("virus") > 5
    assert {path.name for path in (folder / "out").iterdir()} == set(RESULTS)
    made = {path.name for path in folder.rglob("*") if path.is_file()}
    pieces = {f"piece_{n:05d}.{kind}" for n in range(1, 9) for kind in ("fasta", "parquet", "h5")}
    others = {"in.fa", "all.parquet", ".input.json", "embeddings.h5", "config.json", "report.html"}
    others |= {"model.safetensors", "classifier.safetensors", "chunked30.fa"}
    others |= {"identified_nucleotide.fa", "identified_protein.faa"}
    left = {
        name for name in made - pieces - others - set(RESULTS) if not name.endswith("_mqc.json")
    }
    assert left <= {"virnucpro_mqc_versions.yml"}
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["side"]
