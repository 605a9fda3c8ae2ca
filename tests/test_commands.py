"""Every command of README, CONTRIBUTING and docs is run as a reader would, or says why not.

A page's blocks run in its order in one folder: a checkout with the files that pages name beside it. The
published models are stood in for by tiny ones of the same form, fetched from a hub of our own.
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import typer
from hub import served
from test_head import fair_esm
from test_help import COMMANDS
from tiny import WINDOW, save_dnabert_s, save_esm2

import virnucpro_core as vnp
from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.published.fetch import DNABERT_S, ESM2
from virnucpro_core.published.imports import import_model

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]

NOT_RUN = {
    r"^make ": "the tests stand on what make does; tests/test_docs.py looks for its targets",
    r"^(docker|podman|apptainer) ": "there is no container engine; tests/test_containers.py builds",
    r"-profile (slurm|awsbatch)": "there is no such cluster; tests/test_slurm.py, test_profiles.py",
    r"cuda:|^virnucpro benchmark": "there is no GPU",
    r"^nf-test ": "it is no part of make setup; `make test` runs it where it is",
    r"markers\.fasta|genes/": "it is hours of the whole corpus; tests/test_train.py trains",
}
"""Commands that no machine can be asked to run for a test, and why. Their options are checked."""

LANGUAGES = {
    "bash": "{}",
    "python": "cat > script.py <<'END'\n{}END\npython script.py\n",
    "yaml": "cat > run.yaml <<'END'\n{}END\n",
    "toml": "cat > recipe.toml <<'END'\n{}END\n",
}


@dataclass
class Block:
    """Commands of one fence, and what a `text` fence behind it says that they print."""

    commands: list[str]
    printed: str = ""

    @property
    def slow(self) -> bool:
        return any("nextflow run" in command for command in self.runnable)

    @property
    def runnable(self) -> list[str]:
        return [line for line in self.commands if not any(re.search(no, line) for no in NOT_RUN)]


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.M | re.S):
        if language == "text":
            found[-1].printed = text
        elif language == "console":
            found.append(Block(re.findall(r"^\$ (.*)$", text, re.M)))
        elif language == "bash":
            lines = text.replace("\\\n", " ").splitlines()
            found.append(Block([line for line in lines if line.strip()]))
        elif language in LANGUAGES:
            found.append(Block([LANGUAGES[language].format(text)]))
    return found


PAGES_WITH_COMMANDS = [page for page in PAGES if blocks(page)]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def check(command: str) -> None:
    """Fail where an option, a profile or a script of a command is not there."""
    for line in re.findall(r"(?<![\w-])virnucpro ([a-z][^|>;&#]*)", command):
        words = [word for word in shlex.split(line) if word not in ("…", "...")]
        own = " ".join(words[:2]) if words[0] in ("models", "config") else words[0]
        parser = COMMANDS[own].make_parser(typer.Context(COMMANDS[own], info_name=own))
        parser.parse_args(args=words[len(own.split()) :])
    if "nextflow run" in command:
        schema = json.loads((ROOT / "nextflow_schema.json").read_text())
        groups = schema["$defs"].values()
        parameters = {name for group in groups for name in group["properties"]} | {"help"}
        assert set(re.findall(r" --(\w+)", command)) <= parameters, command
        for profiles in re.findall(r"-profile (\S+)", command):
            for profile in profiles.split(","):
                assert f" {profile} {{" in (ROOT / "nextflow.config").read_text(), command
    for script in re.findall(r"python ((?:scripts|benchmarks)/\S+)", command):
        text = (ROOT / script).read_text()
        for option in re.findall(r" (--[\w-]+)", command):
            assert option[2:] in text, command


@pytest.mark.parametrize("page", [*PAGES, ROOT / "docs/benchmarks/README.md"], ids=named)
def test_options_of_a_page_s_commands_are_there(page: Path) -> None:
    inline = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S))
    for command in [*inline, *(line for block in blocks(page) for line in block.commands)]:
        check(" ".join(command.split()))


def test_no_command_is_left_out_for_a_reason_that_none_needs() -> None:
    commands = [line for page in PAGES for block in blocks(page) for line in block.commands]
    for pattern in NOT_RUN:
        assert any(re.search(pattern, line) for line in commands), pattern


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, fastas: dict[str, Path]) -> Iterator[Path]:
    """A checkout with the files that pages name, and the environment variables of a hub in `env`."""
    folder = tmp_path_factory.mktemp("shelf")
    for path in ROOT.iterdir():
        if path.name not in ("docs", "tests") and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    (folder / "tests").symlink_to(ROOT / "tests")
    (folder / ".venv").symlink_to(sys.prefix)
    lines = (ROOT / "assets/demo/phages.fasta").read_text().split(">")
    contigs = "".join(f">{record}" for record in lines[2:6])
    for name in ("contigs.fasta", "contigs.fa"):
        (folder / name).write_text(contigs)
    for name in ("contigs.fa.gz", "gut.fa.gz"):
        (folder / name).write_bytes(gzip.compress(contigs.encode()))
    (folder / "samples.csv").write_text("sample,fasta\ngut_1,contigs.fasta\ngut_2,gut.fa.gz\n")
    rows = []
    for kind, path in fastas.items():
        text = path.read_text()
        (folder / f"{kind}.fa").write_text(text)
        (folder / f"{kind if kind != 'virus' else 'viruse'}s.fa.gz").write_bytes(gzip.compress(text.encode()))
        rows += [f"{name}\t0.5\n" for name in re.findall(r">(\S+)", text)]
    (folder / "jaeger.tsv").write_text("contig_id\tphage_score\n" + "".join(rows))
    (folder / "nn_classification.tsv").write_text("seq_name\tvirus_score\n" + "".join(rows))
    torch.manual_seed(0)
    save_dnabert_s(folder / "DNABERT-S")
    for name in ("esm2_t30_150M_UR50D.pt", "esm2_t36_3B_UR50D.pt"):
        fair_esm(folder / name, 2, 32, 4, torch.float32)
    torch.save(MLPClassifier(56, 8).state_dict(), folder / "500_model.pth")
    import_model(
        "virnucpro-500", dnabert_s=folder / "DNABERT-S", esm2=folder / "esm2_t36_3B_UR50D.pt",
        classifier=folder / "500_model.pth", models_dir=folder / "models", window=500,
    )  # fmt: skip
    for name in ("before", "out"):
        vnp.predict(folder / "contigs.fasta", output=folder / name, model="mini")
    yield folder


def run(page: Path, shelf: Path, folder: Path, *, slow: bool) -> None:
    shutil.copytree(shelf, folder, symlinks=True, dirs_exist_ok=True)
    hub = folder.parent / "hub"
    save_dnabert_s(hub / DNABERT_S)
    save_esm2(hub / ESM2)
    wanted = [block for block in blocks(page) if slow or not block.slow]
    script = [f"echo '@@@{n}'\n" + "\n".join(block.runnable) for n, block in enumerate(wanted)]
    (folder / ".script").write_text("\n".join(script))
    with served(hub) as server:
        env = {key: value for key, value in os.environ.items() if not key.startswith("VIRNUCPRO_")}
        env |= {"HF_ENDPOINT": server.url, "HF_HOME": str(folder.parent / "cache"), "NO_PROXY": "127.0.0.1"}
        env |= {"PATH": f"{sys.prefix}/bin:{env['PATH']}", "PYTHONPATH": str(ROOT), "NXF_ANSI_LOG": "false"}
        ran = subprocess.run(
            ["bash", "-eux", "-o", "pipefail", ".script"], cwd=folder, env=env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
    said = re.split(r"^@@@\d+\n", ran.stdout, flags=re.M)[1:]
    for block, output in zip(wanted, said, strict=True):
        lines = {loosely(line) for line in output.splitlines()}
        for line in block.printed.splitlines():
            assert loosely(line) in lines | {"", "…"}, output


def loosely(line: str) -> str:
    """A line without its digits and blanks: what it says, not how much."""
    return " ".join(re.sub(r"[\d.,]+(e-\d+)?", "0", line).split())


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=named)
def test_commands_of_a_page_run_in_its_order(page: Path, shelf: Path, tmp_path: Path) -> None:
    run(page, shelf, tmp_path / "virnucpro", slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(b.slow for b in blocks(page))], ids=named)
def test_commands_of_a_page_run_with_nextflow_too(page: Path, shelf: Path, tmp_path: Path) -> None:
    run(page, shelf, tmp_path / "virnucpro", slow=True)
