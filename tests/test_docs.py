"""What the documents and the tools' files say of the repository is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_estimate import CPU, PUBLISHED, WORK

from virnucpro_core.estimate import Amount, estimate, on_gpu
from virnucpro_core.sequences.pace import cores

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("assets/**/*.md")]
MAKEFILE = (ROOT / "Makefile").read_text()


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_paths_and_targets_that_a_document_names_exist(document: Path) -> None:
    text = document.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        target = document.parent / file if file else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link
    for path in re.findall(r"`([\w./*-]+/[\w.*-]*\.(?:py|nf|json))`", text):
        assert [*ROOT.glob(path), *ROOT.glob(f"virnucpro_core/{path}")], path
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


def test_hooks_lint_and_ci_does_what_the_two_commands_do() -> None:
    hooks = re.findall(r"entry: make (.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert f"\nlint: {' '.join(hooks)}\n" in MAKEFILE
    [workflow] = ROOT.glob(".github/workflows/*")
    assert re.findall(r"run: (.*)", workflow.read_text()) == ["make demo", "make test"]


def test_readme_says_of_a_gigabase_what_estimate_says(tmp_path: Path) -> None:
    scale = 1e9 / WORK.bases
    contigs, bases, windows, frames, tokens = (round(scale * count) for count in WORK[:-1])
    work = Amount(contigs, bases, windows, frames, tokens, exact=True)
    gpus = [on_gpu(work, PUBLISHED, "", kind, "fp16", 1, None) for kind in ("t4", "a100", "h100")]
    told = estimate(work, PUBLISHED, CPU, tmp_path)
    assert told.here.seconds
    t4, a100, h100 = (gpu.seconds or 0.0 for gpu in gpus)
    times = (
        f"{told.here.seconds * cores() / 8 / 86400:.0f} days | {t4 / 3600:.0f} hours | "
        f"{a100 / 3600:.1f} hours | {h100 / 60:.0f} minutes"
    )
    memory = f"{gpus[0].memory / 1e9:.0f} GB of the GPU, or {told.here.memory / 1e9:.0f} GB"
    readme = (ROOT / "README.md").read_text()
    assert f"| `virnucpro-500` | {times} | {memory} |" in readme
    assert (
        f"a run {told.peak / 1e9:.0f} GB for 1 Gb, of which {told.results / 1e9:.0f} GB" in readme
    )
