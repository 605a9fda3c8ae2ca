"""Profiles: any of them together, in any order; what Nextflow makes of them."""

from __future__ import annotations

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_nextflow import NEXTFLOW, ROOT, nextflow

import virnucpro_core as vnp
from virnucpro_core.models import DEFAULT

pytestmark = pytest.mark.skipif(NEXTFLOW is None, reason="no Nextflow: run make setup")

ENGINES = ("conda", "docker", "singularity", "apptainer", "podman")
GPU_FLAGS = {
    "docker": "--gpus all",
    "podman": "--device nvidia.com/gpu=all",
    "singularity": "--nv",
    "apptainer": "--nv",
}
COMBINATIONS = [
    ("test",),
    ("gpu",),
    *(("test", "gpu", "slurm", "debug", engine) for engine in ENGINES),
    ("test_full", "gpu", "awsbatch"),
    ("test", "gpu", "googlebatch"),
    ("test", "gpu", "kubernetes"),
    ("test", "awsbatch"),
    ("docker", "conda"),
]
# Stands for a container engine: runs the task's command on the host.
ENGINE_SHIM = """#!/bin/sh
case $1 in
    run | exec) while [ "$1" != /bin/bash ]; do shift; done; exec "$@" ;;
    pull) while [ "$1" != --name ]; do shift; done; touch "$2" ;;
esac
"""
# Stands for conda: looks for pip's requirement as seen from the file's folder, takes ours.
CONDA_SHIM = f"""#!/bin/sh
[ "$1" = info ] && {{ echo '"conda_prefix": "'$(dirname "$(dirname "$0")")'"'; exit; }}
while [ $# -gt 0 ]; do
    case $1 in --prefix) prefix=$2 ;; --file) file=$2 ;; esac
    shift
done
cd "$(dirname "$file")"
wheel=$(sed -n 's/^    - //p' environment.yml)
[ -e "$wheel" ] || {{ echo "no $wheel" >&2; exit 1; }}
mkdir -p "$prefix/bin"
ln -s {ROOT}/.venv/bin/virnucpro "$prefix/bin"
"""


def configuration(profiles: tuple[str, ...]) -> str:
    run = nextflow(ROOT, "config", "-flat", "-profile", ",".join(profiles), ".")
    assert run.returncode == 0, run.stdout
    return run.stdout


@pytest.fixture(scope="module")
def configurations() -> dict[tuple[str, ...], str]:
    """What `nextflow config` says of each combination, and of each the other way round."""
    wanted = sorted({*COMBINATIONS, *(names[::-1] for names in COMBINATIONS)})
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(wanted, pool.map(configuration, wanted), strict=True))


def value(text: str, name: str) -> str | None:
    found = re.search(rf"^{re.escape(name)} = (.*)$", text, re.MULTILINE)
    return found[1] if found else None


@pytest.mark.parametrize("names", COMBINATIONS, ids=",".join)
def test_order_of_profiles_does_not_matter(
    names: tuple[str, ...], configurations: dict[tuple[str, ...], str]
) -> None:
    assert configurations[names] == configurations[names[::-1]]


@pytest.mark.parametrize("names", COMBINATIONS, ids=",".join)
def test_each_profile_keeps_what_it_sets_beside_the_others(
    names: tuple[str, ...], configurations: dict[tuple[str, ...], str]
) -> None:
    text = configurations[names]
    expected: dict[str, str | None] = {
        # what the base says, which no profile may lose
        "process.'withLabel:process_gpu'.time": "{ 8.h * task.attempt }",
        "process.shell": "['bash', '-C', '-e', '-u', '-o', 'pipefail']",
        "trace.overwrite": "true",
        "params.outdir": "'results'",
        "params.model": "'virnucpro-500'" if "test_full" in names else f"'{DEFAULT}'",
        "process.executor": {
            "slurm": "'slurm'",
            "awsbatch": "'awsbatch'",
            "googlebatch": "'google-batch'",
            "kubernetes": "'k8s'",
        }.get(next(iter({"slurm", "awsbatch", "googlebatch", "kubernetes"} & {*names}), "")),
        "process.beforeScript": "'echo \"node: $(hostname)\"'" if "debug" in names else None,
    }
    # of two engines the one that stands lower in nextflow.config
    chosen = max((engine for engine in ENGINES if engine in names), key=ENGINES.index, default=None)
    for engine in ENGINES if chosen else ():
        expected[f"{engine}.enabled"] = "true" if engine == chosen else "false"
    assert {name: value(text, name) for name in expected} == expected


@pytest.mark.parametrize("names", COMBINATIONS, ids=",".join)
def test_gpus_are_asked_for_by_the_profile_alone_and_never_globally(
    names: tuple[str, ...], configurations: dict[tuple[str, ...], str]
) -> None:
    settings = [
        line.partition(" = ")[0]
        for line in configurations[names].splitlines()
        if re.match(r"\S+(accelerator|containerOptions|runOptions|engineOptions) = ", line)
    ]
    label = "process.'withLabel:process_gpu"
    assert [name for name in settings if not name.endswith(".runOptions")] == [
        f"{label}'.containerOptions",
        *([f"{label}.*'.accelerator"] if "gpu" in names else []),
    ]
    assert "--gpus" not in (value(configurations[names], "docker.runOptions") or "")


@pytest.mark.parametrize("engine", ENGINES)
def test_files_of_containers_are_the_users(
    engine: str, configurations: dict[tuple[str, ...], str]
) -> None:
    """The image's own user could not write into a task's folder; Singularity's is the user."""
    text = configurations["test", "gpu", "slurm", "debug", engine]
    users = {"docker": "'-u $(id -u):$(id -g)'", "podman": "'-u 0:0'"}
    for other in ENGINES:
        expected = users.get(other) if other == engine else None
        assert value(text, f"{other}.runOptions") == expected


@pytest.mark.parametrize(
    ("engine", "profiles", "kept"),
    [
        *((engine, f"gpu,{engine},test", True) for engine in GPU_FLAGS),
        *((engine, f"test,{engine},gpu", False) for engine in ("docker", "singularity")),
        *((engine, f"{engine},test", True) for engine in ("podman", "apptainer")),
        ("docker", "test,docker", False),
    ],
)
def test_containers_of_embed_alone_get_gpus_checkpoints_and_locks(
    engine: str, profiles: str, kept: bool, tmp_path: Path
) -> None:
    """A stub run with a stand-in for the engine: what each task would be started with."""
    shim = tmp_path / "path" / engine
    shim.parent.mkdir()
    shim.write_text(ENGINE_SHIM)
    shim.chmod(0o755)
    path = f"{shim.parent}:{os.environ['PATH']}"
    words = ["-stub", "-profile", profiles, "--gpus_per_task", "2"]
    words += ["--checkpoint_dir", "kept here"] if kept else []
    run = nextflow(tmp_path, "run", f"{ROOT}/main.nf", *words, PATH=path)
    assert run.returncode == 0, run.stdout
    tasks = [task.read_text() for task in (tmp_path / "work").glob("*/*/.command.run")]
    assert len(tasks) == 11
    assert all("ghcr.io" in task for task in tasks)
    gpu = "gpu" in profiles
    folder = tmp_path / "kept here"
    mount, env = ("-v", "-e") if engine in ("docker", "podman") else ("-B", "--env")
    options = [
        *([GPU_FLAGS[engine]] if gpu else []),
        *([f"{mount} '{folder}:{folder}'"] if kept else []),
        f'{mount} "${{VIRNUCPRO_LOCKS:-/tmp}}":/mnt {env} VIRNUCPRO_LOCKS=/mnt',
    ]
    for task in tasks:
        embeds = "VIRNUCPRO_EMBED" in task
        assert (f" {' '.join(options)} " in task) == embeds
        assert (GPU_FLAGS[engine] in task) == (embeds and gpu)
        assert (str(folder) in task) == ("VIRNUCPRO_LOCKS" in task and kept) == (embeds and kept)
        assert ("CUDA_VISIBLE_DEVICES" in task) == gpu
    assert folder.is_dir() == kept


@pytest.mark.parametrize("gpus", [0, 1, 3])
def test_embed_on_one_machine_takes_all_cores_or_eight_a_gpu(gpus: int, tmp_path: Path) -> None:
    large = "executor { cpus = 999; memory = 999.GB }\nprocess.resourceLimits = [:]\n"
    (tmp_path / "large.config").write_text(large + "trace.fields = 'process,cpus'\n")
    words = ["-c", "large.config", "--input", f"{ROOT}/assets/demo/others.fasta", "--model", "mini"]
    words += ["-profile", "gpu", "--gpus_per_task", str(gpus)] if gpus else []
    run = nextflow(tmp_path, "run", f"{ROOT}/main.nf", "-stub", *words)
    assert run.returncode == 0, run.stdout
    trace = (tmp_path / "results" / "pipeline_info" / "trace.txt").read_text().splitlines()
    [asked] = {line.split("\t")[1] for line in trace if "VIRNUCPRO_EMBED" in line}
    assert int(asked) == (8 * gpus or len(os.sched_getaffinity(0)))


def test_conda_installs_the_wheel_of_this_checkout_or_says_that_it_is_missing(
    tmp_path: Path,
) -> None:
    """A stub run of a copy of the pipeline, with a stand-in for conda."""
    project = tmp_path / "project"
    for part in ("bin", "conf", "modules", "subworkflows"):
        shutil.copytree(ROOT / part, project / part)
    for file in ("main.nf", "nextflow.config", "nextflow_schema.json"):
        shutil.copy(ROOT / file, project)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "conda").write_text(CONDA_SHIM)
    (tmp_path / "bin" / "conda").chmod(0o755)
    (tmp_path / "bin" / "activate").write_text('export PATH="$1/bin:$PATH"\n')
    words = ["run", str(project / "main.nf"), "-stub", "-profile", "conda", "--model", "mini"]
    words += ["--input", f"{ROOT}/tests/data/nf/phages.fasta"]
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    run = nextflow(tmp_path, *words, PATH=path)
    assert run.returncode != 0
    assert "which is not built: run `make wheel` in" in run.stdout
    assert "Creating env" not in run.stdout
    (project / "dist").mkdir()
    (project / "dist" / f"virnucpro-{vnp.__version__}-py3-none-any.whl").touch()
    run = nextflow(tmp_path, *words, PATH=path)
    assert run.returncode == 0, run.stdout
