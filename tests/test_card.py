"""Model cards: what the folder of a model says, and the one of `mini` among the documents."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

from virnucpro_core.lab.card import NOTES, card
from virnucpro_core.models.store import Model, read_model, resolve_model

ROOT = Path(__file__).parents[1]


def test_docs_mini_is_the_card_of_mini() -> None:
    """After a change: `virnucpro models card mini > docs/mini.md`."""
    assert (ROOT / "docs" / "mini.md").read_text() == card(resolve_model("mini"))


def test_notes_of_mini_have_what_the_benchmark_of_mini_says() -> None:
    sentences = runpy.run_path(str(ROOT / "benchmarks" / "mini.py"))["sentences"]
    record = json.loads((ROOT / "docs" / "benchmarks" / "mini.json").read_text())
    assert sentences(record) in (resolve_model("mini").folder / NOTES).read_text()


def test_card_of_mini_has_its_figures_rule_recipe_and_hashes() -> None:
    mini = resolve_model("mini")
    about = json.loads((mini.folder / "model.json").read_text())
    said = card(mini)
    found = [about["training"][part]["contigs"] for part in ("validation", "test")]
    for name, key in (("AUC", "auc"), ("found at 5 percent false", "found_at_5_percent_false")):
        assert f"| {name} | {found[0][key]:.4g} | {found[1][key]:.4g} |" in said
    for name, share in found[1]["called"].items():
        assert (
            f"| {name.replace('_', ' ')} | {found[0]['called'][name]:.4g} | {share:.4g} |" in said
        )
    errors = (f"{v:.4g}" for part in found for v in part["calibration"]["all"].values())
    assert f"| all | {' | '.join(errors)} |" in said
    assert f"| call at | {about['contig_rule']['call_at']:.4g} |" in said
    assert f"| recipe: steps | {about['training']['recipe']['steps']} |" in said
    assert "| files: virus | virus.fa.xz |" in said
    for sha in mini.weights.values():
        assert sha in said


def test_card_of_a_model_without_record_and_notes_has_its_parts_alone(tiny: Model) -> None:
    said = card(tiny)
    assert said.startswith(f"# {tiny.name}\n\n| ")
    assert "| protein encoder | ESM-2, 2 layers, 32 wide, 4 heads; " in said
    assert "| classifier | 56 → 8 → 2 |" in said
    assert [line for line in said.splitlines() if line.startswith("#")] == ["# tiny", "## Files"]


def test_card_of_notes_has_figures_after_their_first_words(tiny: Model, tmp_path: Path) -> None:
    shutil.copytree(tiny.folder, tmp_path / "own")
    about = json.loads((tmp_path / "own" / "model.json").read_text())
    about["training"] = {"seed": 3, "test": {"auc": 0.9}, "epochs": [{"loss": 1.0}] * 4}
    about["source"] = {"esm2": "someone/esm2@c0ffee"}
    (tmp_path / "own" / "model.json").write_text(json.dumps(about))
    (tmp_path / "own" / NOTES).write_text("For {{ sea }} water.\n\n## Data\n\nOurs.\n")
    said = card(read_model(tmp_path / "own"))
    order = ["For {{ sea }} water.", "source: esm2 | someone/esm2@c0ffee", "| AUC | 0.9 |"]
    order += ["## Data\n\nOurs.\n", "| epochs | 4 |", "## Files"]
    places = [said.index(text) for text in order]
    assert places == sorted(places)


def test_page_promises_of_mini_what_its_record_has() -> None:
    mini = resolve_model("mini")
    record = json.loads((mini.folder / "model.json").read_text())["training"]["test"]["contigs"]
    page = (mini.folder.parent / "results/page/page.html.j2").read_text()
    assert "it finds four in five, and it calls one in twenty of the others" in page
    assert round(5 * record["sensitivity"]) == 4
    assert 18 < 1 / (1 - record["specificity"]) < 23
