"""The image's lock and recipes: the same packages as `make` installs, without its tools."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
CONTAINERFILE = (PROJECT / "containers" / "Containerfile").read_text()
APPTAINER = (PROJECT / "containers" / "virnucpro.def").read_text()
PACKAGE = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


def locked(name: str) -> dict[str, set[str]]:
    """Requirements of a lock, `name==version ; marker`, each with its hashes."""
    lock: dict[str, set[str]] = {}
    for line in (PROJECT / name).read_text().splitlines():
        if line[:1].isalnum():
            lock[requirement := line.rstrip("\\ ")] = set()
        elif line.strip().startswith("--hash="):
            lock[requirement].add(line.strip("\\ "))
    return lock


def names(requirements: list[str] | dict[str, set[str]]) -> set[str]:
    return {re.split(r"[^\w.-]", one)[0].lower() for one in requirements}


def test_the_runtime_lock_is_a_part_of_the_one_lock() -> None:
    whole, runtime = locked("requirements.txt"), locked("requirements-runtime.txt")
    assert runtime
    assert all(runtime.values())
    assert runtime.items() <= whole.items(), "run 'make lock'"


def test_the_runtime_lock_has_what_the_package_needs_and_no_tool_of_development() -> None:
    runtime = names(locked("requirements-runtime.txt"))
    assert names(PACKAGE["dependencies"]) <= runtime
    assert not names(PACKAGE["optional-dependencies"]["dev"]) & runtime
    assert "setuptools" in runtime, "builds the package inside the image"


@pytest.mark.parametrize(
    "recipe", [CONTAINERFILE, APPTAINER], ids=["Containerfile", "virnucpro.def"]
)
def test_a_recipe_installs_from_the_lock_alone(recipe: str) -> None:
    installs = re.findall(r"pip install (.*)", recipe)
    assert len(installs) == 2
    assert "--require-hashes -r /opt/virnucpro/requirements-runtime.txt" in installs[0]
    assert "--no-deps --no-build-isolation /tmp/virnucpro" in installs[1]
    assert re.findall(r'image\.version[= ]"?([\d.]+)', recipe) == [PACKAGE["version"]]


def test_both_recipes_agree() -> None:
    debian = re.compile(r"--no-install-recommends \\\n\s+([^&\n]*[^&\s\\])")
    assert set(debian.search(CONTAINERFILE)[1].split()) == set(debian.search(APPTAINER)[1].split())
    base = re.compile(r"BASE=(\S+)")
    assert base.search(CONTAINERFILE)[1] == base.search(APPTAINER)[1]


def test_the_image_suits_nextflow_and_carries_no_models() -> None:
    assert "procps" in CONTAINERFILE
    assert re.search(r"^ENTRYPOINT \[\]$", CONTAINERFILE, re.M)
    assert re.findall(r"^USER (.*)$", CONTAINERFILE, re.M) == ["virnucpro"]
    assert "VIRNUCPRO_MODELS=/models" in CONTAINERFILE
    copied = set(re.findall(r"[\w./-]+", " ".join(re.findall(r"^COPY (.*)$", CONTAINERFILE, re.M))))
    allowed = {
        line[1:]
        for line in (PROJECT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert allowed == {path for path in copied if not path.startswith("/")}
