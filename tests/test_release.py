"""What a release is: one version everywhere, a note about it, and a wheel that works by itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from virnucpro_core.version import __version__

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "virnucpro_core"
VERSION = r"(\d+\.\d+\.\d+[\w.]*)"


@pytest.mark.parametrize(
    ("file", "before"),
    [
        ("nextflow.config", r"\n    version += '"),
        ("CITATION.cff", "\nversion: "),
        (".nf-core.yml", "\n  version: "),
        ("containers/Containerfile", 'image.version="'),
        ("containers/Containerfile", "/virnucpro:"),
        ("containers/virnucpro.def", "image.version "),
        ("docs/containers.md", "/virnucpro:"),
        ("docs/cloud.md", "/virnucpro:"),
        ("modules/local/virnucpro/*/main.nf", "/virnucpro:"),
        ("modules/local/virnucpro/*/environment.yml", "/virnucpro-"),
    ],
)
def test_version_is_the_same_wherever_it_stands(file: str, before: str) -> None:
    paths = list(ROOT.glob(file))
    assert paths
    for path in paths:
        found = re.findall(f"{before}{VERSION}(?=['\"\\s`-])", path.read_text())
        assert set(found) == {__version__}, path


def test_changelog_has_a_note_for_this_version_first() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.*)\] - (unreleased|\d{4}-\d\d-\d\d)$", text, re.MULTILINE)
    assert len(headings) == text.count("\n## ")
    assert headings[0][0] == __version__


def packaged(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_installs_and_runs_mini_away_from_the_checkout(tmp_path: Path) -> None:
    """In an environment that has the packages of this one, less the package itself."""

    def run(*command: str | Path) -> str:
        env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    source = tmp_path / "source"
    shutil.copytree(PACKAGE, source / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / ".venv").symlink_to(sys.prefix)
    run("make", "-C", source, "--old-file=setup", "wheel")
    wheel = source / "dist" / f"virnucpro-{__version__}-py3-none-any.whl"

    env = tmp_path / "env"
    venv.create(env, symlinks=True)
    python = env / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-index", "--no-deps", wheel)
    shutil.rmtree(source)
    [site] = env.glob("lib/python*/site-packages")
    (site / "others.pth").write_text("\n".join({*map(sysconfig.get_path, ("purelib", "platlib"))}))

    assert packaged(site / PACKAGE.name) == packaged(PACKAGE)
    said = run(python, "-c", "import virnucpro_core; print(virnucpro_core.__file__)")
    assert said == f"{site / PACKAGE.name / '__init__.py'}\n"
    assert run(env / "bin" / "virnucpro", "--version") == f"virnucpro {__version__}\n"
    fasta = ROOT / "tests" / "data" / "nf" / "phages.fasta"
    said = run(env / "bin" / "virnucpro", "predict", fasta, "-o", "out", "--model", "mini")
    assert re.search(r"\d+ contigs: [1-9]\d* virus", said)
    assert "<title>" in (tmp_path / "out" / "report.html").read_text()
