"""Counts the lines that a user writes: those of a function and of what it uses from its own file.

Comments, docstrings, blank lines and imports are left out; a statement over several lines counts as many.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lines_of(function: Callable[..., Any]) -> int:
    """Return the number of lines of a module's function and of what it needs from this module."""
    path = inspect.getsourcefile(function)
    assert path is not None
    return count_lines(Path(path).read_text(encoding="utf-8"), function.__name__)


def count_lines(text: str, name: str) -> int:
    """Return the number of lines behind the top-level name `name` of a module's text.

    >>> count_lines("import torch\\nSTEP = 2\\n\\ndef f(x):\\n    # twice\\n    return STEP * x\\n", "f")
    3
    """
    homes = {each: node for node in ast.parse(text).body for each in _bound(node)}
    needed: dict[str, ast.stmt] = {}
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current in homes and current not in needed:
            needed[current] = homes[current]
            waiting += [each.id for each in ast.walk(homes[current]) if isinstance(each, ast.Name)]
    lines = text.splitlines()
    numbers = {number for node in needed.values() for number in _code(node)}
    return sum(1 for number in numbers if lines[number - 1].strip().partition("#")[0].strip())


def _bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [
        each.id
        for target in targets
        if target
        for each in ast.walk(target)
        if isinstance(each, ast.Name) and isinstance(node, ast.Assign | ast.AnnAssign)
    ]


def _code(node: ast.stmt) -> set[int]:
    """Return the numbers of a definition's lines, those of imports and docstrings left out."""
    numbers = set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for each in ast.walk(node):
        if isinstance(each, ast.Import | ast.ImportFrom) or (isinstance(each, ast.Expr) and _is_text(each)):
            numbers -= set(range(each.lineno, (each.end_lineno or each.lineno) + 1))
    return numbers


def _is_text(node: ast.Expr) -> bool:
    return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
