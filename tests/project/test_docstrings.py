"""Docstrings of public code name their subject: "Return ...", "The ...", never "What ..."."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

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


def modules() -> Iterator[tuple[Path, ast.Module]]:
    """Yield every module of the two packages with its syntax tree."""
    for root in ("streamcl", "streams"):
        for path in sorted((ROOT / root).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def test_no_docstring_begins_with_what() -> None:
    found = [f"{path}: {text}" for path, tree in modules() for text in docstrings(tree)]
    assert not [each for each in found if each.partition(": ")[2].startswith("What ")]


def takes_a_tensor(node: ast.FunctionDef) -> bool:
    arguments = [*node.args.args, *node.args.kwonlyargs]
    return any(
        re.search(r"\bTensor\b", ast.unparse(each.annotation)) for each in arguments if each.annotation
    )


def says_shapes(text: str) -> bool:
    """Whether it has a shape such as [B, D], or says why there is none."""
    return bool(
        re.search(r"\[[^\]]*[A-Za-z0-9][^\]]*\]|scalar|any shape|by name|by parameter|state dict", text)
    )


def test_public_functions_of_tensors_say_their_shapes() -> None:
    silent = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in modules()
        for node in public(tree)
        if isinstance(node, ast.FunctionDef)
        if takes_a_tensor(node) and not says_shapes(ast.get_docstring(node) or "")
    ]
    assert not silent


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
