"""Tests use the public surface: they read, import and replace nothing whose name begins with _."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

REPLACING = {"setattr", "getattr", "delattr", "hasattr"}
"""Calls that name an attribute by a string, `monkeypatch.setattr` among them."""

ALLOWED = {
    "os._exit": "documented in spite of its name: a child process ends without its parent's clean-up",
    "torch.Tensor._make_wrapper_subclass": "the only way to a tensor that pretends to be on a GPU",
    "func._schema": "which arguments an operator of torch writes to is said nowhere else",
}


def private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__") and name != "_"


def private_uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield lines and private names that are read from another object than `self` or `cls`."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute(attr=name) if private(name):
                yield node.lineno, ast.unparse(node)
            case ast.ImportFrom(module=str(module), names=names):
                yield from ((node.lineno, f"{module}.{each.name}") for each in names if private(each.name))
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called)) if called in REPLACING:
                strings = [each.value for each in node.args if isinstance(each, ast.Constant)]
                yield from ((node.lineno, text) for text in strings if named_in(text))


def named_in(text: object) -> bool:
    """Return whether a string is a private name, or a dotted path that ends in one."""
    return isinstance(text, str) and private(text.replace(":", ".").rpartition(".")[2])


@functools.cache
def found_in_tests() -> dict[str, tuple[str, ...]]:
    """The private names that the tests read, each with the files and lines where."""
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted(TESTS.rglob("*.py")):
        for line, name in private_uses(ast.parse(path.read_text(encoding="utf-8"))):
            found[name] = (*found.get(name, ()), f"{path.relative_to(TESTS)}:{line}")
    return found


def test_no_test_reads_a_private_attribute() -> None:
    assert {name: lines for name, lines in found_in_tests().items() if name not in ALLOWED} == {}


def test_every_exception_is_needed() -> None:
    assert ALLOWED.keys() <= found_in_tests().keys()


@pytest.mark.parametrize(
    "code",
    [
        "learner._solved()",
        "head._solver.ridge",
        "from streams.replay.scenarios import _blur",
        "monkeypatch.setattr(module, '_read', read)",
        "monkeypatch.setattr('streamcl.nn.backbone._ROOM', 1)",
        "super()._sample(0)",
    ],
)
def test_a_private_name_is_found_however_it_is_reached(code: str) -> None:
    assert list(private_uses(ast.parse(code)))


def test_what_is_no_private_name_of_another_object_is_let_be() -> None:
    code = "self._mine, cls._made, x.__class__, _, setattr(x, 'public', '_')"
    assert not list(private_uses(ast.parse(code)))
