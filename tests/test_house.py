"""Which room may import which."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "virnucpro_core"


def imports(path: Path, *, at_start: bool = False) -> Iterator[str]:
    """Modules that a file names in its imports: all, or those that importing it imports."""
    tree = ast.parse(path.read_text())
    inner = {
        id(node)
        for scope in ast.walk(tree)
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(scope)
    }
    for node in ast.walk(tree):
        if at_start and id(node) in inner:
            continue
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"{module}.{name.name}" for name in names)


def test_lab_from_outside_is_imported_by_its_commands_alone() -> None:
    arrows = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if PACKAGE / "lab" not in path.parents
        and any(name.startswith("virnucpro_core.lab") for name in imports(path))
    }
    assert arrows == {"cli/__init__.py"}
    own = "virnucpro_core.lab.commands"
    named = [name for name in imports(PACKAGE / "cli/__init__.py") if ".lab" in name]
    assert all(name.startswith(own) for name in named)
    for path in (PACKAGE / "lab/commands").glob("*.py"):
        assert not any(".lab" in name for name in imports(path, at_start=True))


def test_the_face_of_the_package_is_imported_by_no_room() -> None:
    for path in PACKAGE.rglob("*.py"):
        for name in imports(path):
            package, _, rest = name.partition(".")
            assert (
                package != "virnucpro_core"
                or (PACKAGE / rest.partition(".")[0]).exists()
                or (PACKAGE / f"{rest.partition('.')[0]}.py").exists()
            ), f"{path} imports {name}"


def test_published_is_imported_by_its_commands_the_face_and_what_makes_models_alone() -> None:
    """What a run loads has no way to a pickle; who trains writes models as `import` does."""
    published = PACKAGE / "published"
    arrows = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if published not in path.parents
        and any(name.startswith("virnucpro_core.published") for name in imports(path))
    }
    commands = {"cli/__init__.py", "lab/commands/inspect.py"}
    assert arrows == {"__init__.py", *commands, "lab/export.py", "lab/train_head.py"}
    for file in commands:
        named = [name for name in imports(PACKAGE / file) if ".published" in name]
        assert named == ["virnucpro_core.published.commands"], file
    own = [*imports(published / "commands.py", at_start=True)]
    assert not any(name.startswith("virnucpro_core.published") for name in own)


def test_nothing_runs_what_an_input_says() -> None:
    """No shell, no evaluated text, and no pickle but the reader of ours that runs nothing."""
    for path in PACKAGE.rglob("*.py"):
        assert not {name.partition(".")[0] for name in imports(path)} & {"pickle", "marshal"}, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in {"eval", "exec", "os.system", "os.popen", "torch.load"}, path
                assert "shell" not in {keyword.arg for keyword in node.keywords}, path
