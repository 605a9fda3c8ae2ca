"""Every command of README, CONTRIBUTING and docs is run as a reader would, or says why not.

A page's blocks run in its order in one folder: a checkout with the files that pages name beside it.
The published models are stood in for by tiny ones in their format, and the hub by one of ours.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import typer
from hub import served
from test_help import COMMANDS
from tiny import fair_esm, save_dnabert_s, save_esm2

import virnucpro_core as vnp
from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.published.fetch import DNABERT_S, ESM2
from virnucpro_core.published.imports import import_model

ROOT = Path(__file__).parents[1]
CHECKOUT = (
    *("assets", "bin", "conf", "modules", "scripts", "subworkflows", "tests", "virnucpro_core"),
    *("main.nf", "nextflow", "nextflow.config", "nextflow_schema.json", "pyproject.toml"),
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
FIGURES = ROOT / "docs" / "benchmarks" / "README.md"

NOT_RUN = {
    r"^make ": "the tests stand on what make did; tests/test_docs.py looks for its targets",
    r"^git clone": "there is no network",
    r"^(docker|podman|apptainer) ": "there is no engine; tests/test_containers.py builds the image",
    r"-profile \S*(slurm|awsbatch)": "there is no such cluster; tests/test_slurm.py has one",
    r"cuda:|^virnucpro benchmark": "there is no GPU",
    r"^nf-test ": "it is no part of make setup; `make test` runs it where it is",
    r"markers\.fasta|genes/": "it takes the corpus, and hours; tests/test_train.py trains on less",
}
"""What is not run of the commands, and why. Their options are checked all the same."""

SCRIPTS = {
    "bash": "{}",
    "python": "cat > script.py <<'END'\n{}END\npython script.py\n",
    "yaml": "cat > run.yaml <<'END'\n{}END\n",
    "toml": "cat > recipe.toml <<'END'\n{}END\n",
}
"""What a reader makes of a fence of a language."""


@dataclass
class Block:
    """Commands of one fence, and what a `text` fence behind it says that they print."""

    commands: list[str]
    printed: str = ""

    def __post_init__(self) -> None:
        self.run = [
            line for line in self.commands if not any(re.search(no, line) for no in NOT_RUN)
        ]
        self.slow = any("nextflow run" in line for line in self.run)


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.M | re.S):
        if language == "text":
            found[-1].printed = text
        elif language == "console":
            found.append(Block(re.findall(r"^\$ (.*)$", text, re.M)))
        elif language == "bash":
            found.append(Block(text.replace("\\\n", " ").splitlines()))
        elif language in SCRIPTS:
            found.append(Block([SCRIPTS[language].format(text)]))
    return found


def inline(page: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    return [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", prose)]


def check(command: str) -> None:
    """Fail where an option, a profile or a script of a command is not there."""
    for line in re.findall(r"(?<![\w-])virnucpro ([a-z][^|>;&#]*)", command):
        words = [word for word in shlex.split(line) if word not in ("…", "...")]
        own = " ".join(words[:2]) if words[0] in ("models", "config") else words[0]
        parser = COMMANDS[own].make_parser(typer.Context(COMMANDS[own], info_name=own))
        parser.parse_args(args=words[len(own.split()) :])
    if "nextflow run" in command:
        schema = json.loads((ROOT / "nextflow_schema.json").read_text())["$defs"]
        parameters = {name for group in schema.values() for name in group["properties"]}
        assert set(re.findall(r" --(\w+)", command)) <= parameters | {"help"}, command
        for profiles in re.findall(r"-profile (\S+)", command):
            for profile in profiles.split(","):
                assert f" {profile} {{" in (ROOT / "nextflow.config").read_text(), command
    for script in re.findall(r"python ((?:scripts|benchmarks)/\S+)", command):
        for option in re.findall(r" --([\w-]+)", command):
            assert option in (ROOT / script).read_text(), command


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [*PAGES, FIGURES], ids=named)
def test_options_of_a_page_s_commands_are_there(page: Path) -> None:
    for command in [*inline(page), *(line for block in blocks(page) for line in block.commands)]:
        check(command)


def test_no_reason_to_leave_a_command_out_is_without_one() -> None:
    commands = [line for page in PAGES for block in blocks(page) for line in block.commands]
    for reason in NOT_RUN:
        assert any(re.search(reason, line) for line in commands), reason


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, fastas: dict[str, Path]) -> Path:
    """A checkout with the files beside it that pages name."""
    folder = tmp_path_factory.mktemp("shelf")
    for name in CHECKOUT:
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    genomes = (ROOT / "assets/demo/phages.fasta").read_text().split(">")
    contigs = "".join(f">{genome}" for genome in genomes[2:6])
    virus, other = (fastas[kind].read_text() for kind in ("virus", "other"))
    sheet = "sample,fasta\ngut_1,contigs.fasta\ngut_2,gut.fa.gz\n"
    plain = {"contigs.fasta": contigs, "contigs.fa": contigs, "samples.csv": sheet}
    for name, text in (plain | {"virus.fa": virus, "other.fa": other}).items():
        (folder / name).write_text(text)
    packed = {"contigs": contigs, "gut": contigs, "viruses": virus, "others": other}
    for name, text in packed.items():
        (folder / f"{name}.fa.gz").write_bytes(gzip.compress(text.encode()))
    scores = [f"{name}\t0.5" for name in re.findall(r">(\S+)", virus + other)]
    for name, score in (("jaeger", "phage_score"), ("nn_classification", "virus_score")):
        (folder / f"{name}.tsv").write_text("\n".join([f"contig_id\t{score}", *scores]))
    torch.manual_seed(0)
    save_dnabert_s(folder / "DNABERT-S")
    for name in ("esm2_t30_150M_UR50D.pt", "esm2_t36_3B_UR50D.pt"):
        fair_esm(folder / name, 2, 32, 4, torch.float32)
    head = folder / "500_model.pth"
    torch.save(MLPClassifier(56, 8).state_dict(), head)
    (folder / "original").symlink_to(".")
    import_model(
        "virnucpro-500",
        dnabert_s=folder / "DNABERT-S",
        esm2=folder / "esm2_t36_3B_UR50D.pt",
        classifier=head,
        models_dir=folder / "models",
    )
    for name in ("before", "out"):
        vnp.predict(folder / "contigs.fasta", output=folder / name)
    return folder


def loosely(line: str) -> str:
    """A printed line without decimals, which differ by machine, and with single blanks."""
    return " ".join(re.sub(r"(?<=\d)\.\d+", "", line).split())


def run(page: Path, shelf: Path, folder: Path, *, slow: bool) -> None:
    """Run a page's commands in one shell; compare what they print where the page says it."""
    shutil.copytree(shelf, folder, symlinks=True)
    hub = folder.parent / "hub"
    save_dnabert_s(hub / DNABERT_S)
    save_esm2(hub / ESM2)
    wanted = [block for block in blocks(page) if slow or not block.slow]
    script = "".join("\n".join(["echo @@@", *block.run, ""]) for block in wanted)
    env = {key: value for key, value in os.environ.items() if not key.startswith("VIRNUCPRO_")}
    env |= {"PATH": f"{sys.prefix}/bin:{env['PATH']}", "PYTHONPATH": str(ROOT)}
    env |= {"HF_HOME": str(hub / "cache"), "NO_PROXY": "127.0.0.1", "NXF_ANSI_LOG": "false"}
    env["OMP_NUM_THREADS"] = "1"  # tiny models are quicker so
    with served(hub) as server:
        ran = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", script],
            cwd=folder,
            env=env | {"HF_ENDPOINT": server.url},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=600,
        )
    assert ran.returncode == 0, ran.stdout
    for block, said in zip(wanted, ran.stdout.split("@@@\n")[1:], strict=True):
        lines = {"…", *map(loosely, said.splitlines())}
        assert set(map(loosely, block.printed.splitlines())) <= lines, said


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=named)
def test_commands_of_a_page_run_in_its_order(page: Path, shelf: Path, tmp_path: Path) -> None:
    run(page, shelf, tmp_path / "virnucpro", slow=False)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "nextflow").exists(), reason="no Nextflow: run make setup")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.slow for b in blocks(page))], ids=named
)
def test_commands_of_a_page_run_with_nextflow(page: Path, shelf: Path, tmp_path: Path) -> None:
    run(page, shelf, tmp_path / "virnucpro", slow=True)
