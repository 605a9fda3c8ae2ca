"""What may stand in the place of an expression or a statement of a module: its mutants."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A module, a line by its number and its text, and what stands there now and instead."""

    module: str
    line: int
    text: str
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.module}.py: {self.before} -> {self.after}"


def _variants(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""
    other = copy.deepcopy(node)
    match other:
        case ast.Compare(ops=[op]) if type(op) in _COMPARED:
            other.ops = [_COMPARED[type(op)]()]
            yield other
        case ast.BinOp(op=op) if type(op) in _COMPUTED:
            other.op = _COMPUTED[type(op)]()
            yield other
        case ast.BoolOp(op=op):
            other.op = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield other
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1 if abs(value) <= 10 else 2 * value)
        case ast.If(test=test) | ast.IfExp(test=test):
            other.test = ast.UnaryOp(ast.Not(), test)
            yield other
        case ast.Call(keywords=[*_, ast.keyword(arg=str(name))]) if name != "strict":
            other.keywords = other.keywords[:-1]
            yield other
        case ast.Raise() | ast.Expr(value=ast.Call()):
            yield ast.Pass()


def _decides_nothing(node: ast.AST) -> bool:
    """What no run comes to, or none without an error: `assert`, its error, a zip's `strict`, what
    type checkers alone read; and what a log says on the way."""
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING")) | ast.Call(func=ast.Name(id="TypeVar")):
            return True
        case ast.Call(func=ast.Attribute(value=ast.Name(id="logger"))):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="logger")))):
            return True
        case ast.Raise(exc=ast.Call(func=ast.Name(id="AssertionError"))):
            return True
        case ast.keyword(arg="strict"):
            return True
    return isinstance(node, ast.Assert)


def mutants(module: str) -> Iterator[Mutant]:
    """All mutants of a module.

    Hints, decorators, assertions and logging have none, nor f-strings (no places).
    """
    text = (ROOT / "virnucpro_core" / f"{module}.py").read_bytes()
    lines = [line.strip() for line in text.decode().splitlines()]
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tree = ast.parse(text)
    quiet = {
        id(inner)
        for node in ast.walk(tree)
        for outer in (
            *(getattr(node, name, None) for name in ("annotation", "returns")),
            *getattr(node, "decorator_list", ()),
            node if isinstance(node, ast.JoinedStr) or _decides_nothing(node) else None,
        )
        if outer is not None
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if id(node) in quiet or not isinstance(node, ast.stmt | ast.expr):
            continue
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        for variant in _variants(node):
            after = ast.unparse(ast.fix_missing_locations(variant))
            if isinstance(node, ast.stmt):
                after = after.replace("\n", "\n" + " " * node.col_offset)
            else:
                after = f"({after})"
            source = (text[:begin] + after.encode() + text[end:]).decode()
            try:
                compile(source, module, "exec")
            except SyntaxError:
                continue
            before = " ".join(text[begin:end].decode().split())
            after = " ".join(after.split())
            yield Mutant(
                module, node.lineno, lines[node.lineno - 1], before[:90], after[:90], source
            )


def unchanged(module: str) -> Mutant:
    """The module as it is, at no line: its tests have to pass."""
    path = ROOT / "virnucpro_core" / f"{module}.py"
    return Mutant(module, 0, "", "", "", path.read_text(encoding="utf-8"))
