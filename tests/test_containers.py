"""The image's lock and recipes: the same packages as `make` installs, without its tools.

Where buildah and mmdebstrap are, the image is built too, on a base made of Debian's packages.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from virnucpro_core.version import __version__

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


def test_both_recipes_agree() -> None:
    for pattern in (r"--no-install-recommends \\\n\s+([^&\n]*[^&\s\\])", r"BASE=(\S+)"):
        [one], [other] = (re.findall(pattern, recipe) for recipe in (CONTAINERFILE, APPTAINER))
        assert set(one.split()) == set(other.split())


def test_the_image_suits_nextflow_and_carries_no_models() -> None:
    assert "procps" in CONTAINERFILE
    assert re.search(r"^ENTRYPOINT \[\]$", CONTAINERFILE, re.M)
    assert "VIRNUCPRO_MODELS=/models" in CONTAINERFILE
    copied = set(re.findall(r"[\w./-]+", " ".join(re.findall(r"^COPY (.*)$", CONTAINERFILE, re.M))))
    allowed = {
        line[1:]
        for line in (PROJECT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert allowed == {path for path in copied if not path.startswith("/")}


def test_the_image_runs_as_a_user_that_is_not_root() -> None:
    (number,) = re.findall(r"useradd --uid (\d+) ", CONTAINERFILE)
    assert re.findall(r"^USER (.*)$", CONTAINERFILE, re.M) == [number]
    assert int(number) > 0
    behind = CONTAINERFILE.split(f"USER {number}\n")[1]
    assert re.findall(r"^[A-Z]+", behind, re.M) == ["ENTRYPOINT", "CMD"]
    # Apptainer runs as who started it; nothing of the image may make more of them
    for recipe in (CONTAINERFILE, APPTAINER):
        assert not re.search(r"chmod|setcap|setuid|sudo|USER (0|root)", recipe)


def test_the_bill_of_materials_is_cut_to_the_lock_or_refused(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(
        "Some_Thing==1.0 \\\n    --hash=sha256:00\n    # via other\n"
        "winonly==2.0 ; sys_platform == 'win32' \\\n    --hash=sha256:00\n"
    )
    bill: dict[str, Any] = {
        "components": [
            {"bom-ref": "a", "name": "some-thing", "version": "1.0"},
            {"bom-ref": "b", "name": "pytest", "version": "9"},
        ],
        "dependencies": [{"ref": "root-component", "dependsOn": ["a", "b"]}, {"ref": "b"}],
    }

    def cut() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, PROJECT / "scripts" / "sbom.py", lock, tmp_path / "bill.json"],
            input=json.dumps(bill),
            capture_output=True,
            text=True,
            timeout=60,
        )

    done = cut()
    assert done.returncode == 0, done.stderr
    small = json.loads((tmp_path / "bill.json").read_text())
    assert [part["name"] for part in small["components"]] == ["some-thing"]
    assert small["dependencies"] == [{"ref": "root-component", "dependsOn": ["a"]}]

    bill["components"][0]["version"] = "1.1"
    assert "some-thing" in cut().stderr


@pytest.fixture
def buildah() -> Iterator[list[str]]:
    """The command, with a storage of its own that leaves no gigabytes behind."""
    missing = [tool for tool in ("buildah", "mmdebstrap") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"building needs root{''.join(f' and {tool}' for tool in missing)}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = ["buildah", "--root", f"{folder}/storage", "--runroot", f"{folder}/run"]
        yield command
        subprocess.run([*command, "rm", "--all"], capture_output=True)
        subprocess.run([*command, "rmi", "--all", "--force"], capture_output=True)


@pytest.mark.slow
def test_the_image_builds_on_debian_and_calls_the_demo(buildah: list[str], tmp_path: Path) -> None:
    def run(*command: str | Path) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
        return done.stdout.strip()

    # a machine behind a proxy with a certificate of its own has that here
    certificates = "/usr/local/share/ca-certificates"
    hooks = [
        f"--customize-hook=sync-in {certificates} {certificates}",
        '--customize-hook=chroot "$1" update-ca-certificates',
    ]
    base = tmp_path / "base.tar"
    run("mmdebstrap", "--variant=minbase", "--include=ca-certificates", *hooks, "bookworm", base)
    scratch = run(*buildah, "from", "scratch")
    run(*buildah, "add", scratch, base, "/")
    run(*buildah, "commit", "--rm", scratch, "localhost/base")
    base.unlink()

    recipe = PROJECT / "containers" / "Containerfile"
    chroot = ("--isolation", "chroot")
    image = "localhost/virnucpro"
    argument = ("--build-arg", "BASE=localhost/base")
    run(*buildah, "bud", *chroot, *argument, "-f", recipe, "-t", image, PROJECT)

    container = run(*buildah, "from", image)
    demo = f"{PROJECT / 'assets' / 'demo'}:/data:ro"
    said = run(
        *(*buildah, "run", *chroot, "--volume", demo, container, "--", "bash", "-euc"),
        "id -un; virnucpro --version; ps --version >&2;"
        "virnucpro predict /data/phages.fasta -o /tmp/out --model mini >&2;"
        "cat /tmp/out/contigs.tsv",
    ).splitlines()
    assert said[:2] == ["virnucpro", f"virnucpro {__version__}"]
    calls = [line.split("\t")[8] for line in said[3:]]
    assert calls.count("virus") > len(calls) / 2
