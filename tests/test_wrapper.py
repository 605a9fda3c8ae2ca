"""bin/virnucpro, first on the PATH of Nextflow's tasks, and the launcher of Nextflow itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

WRAPPER = Path(__file__).parents[1] / "bin" / "virnucpro"
SYSTEM = "/usr/bin:/bin"


def install(path: Path, says: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "{says} $*"\n')
    path.chmod(0o755)
    return path.parent


def project(folder: Path) -> Path:
    """The bin folder of a project that has nothing but the wrapper."""
    (folder / "bin").mkdir(parents=True)
    shutil.copy(WRAPPER, folder / "bin" / "virnucpro")
    return folder / "bin"


def run(wrapper: Path, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [wrapper, "embed", "a b"], env={"PATH": path}, capture_output=True, text=True, timeout=20
    )


def test_takes_the_virnucpro_that_stands_next_on_path(tmp_path: Path) -> None:
    here = project(tmp_path / "project")
    install(tmp_path / "project" / ".venv" / "bin" / "virnucpro", "venv")
    activated = install(tmp_path / "with space" / "virnucpro", "activated")
    done = run(here / "virnucpro", f"{here}:{activated}:{SYSTEM}")
    assert done.stdout == "activated embed a b\n"


def test_takes_the_one_of_make_setup_when_path_has_only_itself(tmp_path: Path) -> None:
    here = project(tmp_path / "project")
    install(tmp_path / "project" / ".venv" / "bin" / "virnucpro", "venv")
    link = tmp_path / "links" / "virnucpro"
    link.parent.mkdir()
    link.symlink_to(here / "virnucpro")
    done = run(link, f"{link.parent}:{here}:{SYSTEM}")
    assert done.stdout == "venv embed a b\n"


def test_names_the_remedy_when_there_is_none(tmp_path: Path) -> None:
    done = run(project(tmp_path / "project") / "virnucpro", SYSTEM)
    assert done.returncode == 127
    assert "make setup" in done.stderr


def test_launcher_gives_the_nextflow_of_the_path_utf8_without_a_locale(tmp_path: Path) -> None:
    scripts = tmp_path / "scripts" / "nextflow"
    scripts.mkdir(parents=True)
    shutil.copy(WRAPPER.parents[1] / "scripts" / "nextflow" / "nextflow", scripts)
    theirs = tmp_path / ".tools" / "on_path"
    theirs.parent.mkdir()
    theirs.write_text("#!/bin/sh\necho $LC_ALL $NXF_OPTS $1\n")
    theirs.chmod(0o755)
    env = {"PATH": SYSTEM, "NXF_OPTS": "-Xmx1g"}
    done = subprocess.run([scripts / "nextflow", "run"], env=env, capture_output=True, text=True)
    assert done.stdout.split() == [
        *("C.UTF-8", "-Dfile.encoding=UTF-8", "-Dsun.jnu.encoding=UTF-8", "-Xmx1g", "run")
    ]
