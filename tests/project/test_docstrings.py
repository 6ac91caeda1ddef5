"""Docstrings of public code name their subject: "Return ...", "The ...", never "What ..."."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

STILL: dict[str, int] = {}
"""How many docstrings of each package still begin with "What "; the numbers only go down."""

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield a module and its public classes, functions and methods, however deep."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        yield node
        todo += [
            each
            for each in ast.iter_child_nodes(node)
            if isinstance(each, Documented) and not each.name.startswith("_")
        ]


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Yield the docstrings of public code, those under attributes and constants included."""
    for node in public(tree):
        alone = [each.value for each in ast.iter_child_nodes(node) if isinstance(each, ast.Expr)]
        yield from (
            each.value for each in alone if isinstance(each, ast.Constant) and isinstance(each.value, str)
        )


def package(path: Path) -> str:
    """Return the folder directly under `streamcl`, or `streams`; a module at the root is its own."""
    parts = path.relative_to(ROOT).parts
    return parts[0] if parts[0] == "streams" else parts[1].removesuffix(".py")


def test_no_docstring_begins_with_what() -> None:
    found: Counter[str] = Counter()
    where = []
    for root in ("streamcl", "streams"):
        for path in sorted((ROOT / root).rglob("*.py")):
            openers = [each for each in docstrings(ast.parse(path.read_text())) if each.startswith("What ")]
            found[package(path)] += len(openers)
            where += [f"{path.relative_to(ROOT)}: {each.splitlines()[0]}" for each in openers]
    more = {name for name, count in found.items() if count > STILL.get(name, 0)}
    assert not [each for each in where if package(ROOT / each.partition(":")[0]) in more]
    assert not [name for name in STILL if found[name] == 0], "none left: take them out of the list"


def test_docstrings_of_every_kind_are_seen() -> None:
    tree = ast.parse(
        '''
"""What m"""
A = 1
"""What a"""
class C:
    """What c"""
    field: int
    """What f"""
    def method(self):
        """What d"""
def _private():
    """What p"""
'''
    )
    assert sorted(docstrings(tree)) == ["What a", "What c", "What d", "What f", "What m"]
