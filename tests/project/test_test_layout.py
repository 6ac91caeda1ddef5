"""Test modules stand alone: they share code by tests/support, never by importing one another."""

from __future__ import annotations

import ast
import functools
import tomllib
from pathlib import Path

TESTS = Path(__file__).parents[1]
MODULES = sorted(TESTS.rglob("*.py"))


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """Return the first part of the name of every module that a file imports, at its top or later."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return frozenset(found)


def test_no_module_imports_a_test_module() -> None:
    tests = {each.stem for each in MODULES if each.stem.startswith("test_")}
    found = {str(path.relative_to(TESTS)): imported(path) & tests for path in MODULES}
    assert {path: names for path, names in found.items() if names} == {}


def test_only_the_support_folder_is_on_the_path() -> None:
    project = tomllib.loads((TESTS.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["pytest"]["ini_options"]["pythonpath"] == ["tests/support"]


def test_module_names_are_unique() -> None:
    """Pytest imports test modules by their names alone, and support modules lie on the path beside them."""
    names = [path.stem for path in MODULES]
    assert {name for name in names if names.count(name) > 1} == set()


def test_every_support_module_is_used() -> None:
    users = {path: imported(path) for path in MODULES}
    text = "".join(path.read_text(encoding="utf-8") for path in MODULES)
    for module in (TESTS / "support").glob("*.py"):
        by_import = any(module.stem in names for path, names in users.items() if path != module)
        assert by_import or f'"{module.name}"' in text, module.name
