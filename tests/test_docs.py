"""What the documents and the tools' files say of the repository is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
