"""Names say what they name: one public name has one home, and words that only an author knows occur nowhere.

`names.toml` lists the words, and the exceptions: an entry that nothing needs any more fails.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("streamcl", "streams")

LISTS = tomllib.loads(Path(__file__).with_name("names.toml").read_text(encoding="utf-8"))
BANNED: dict[str, str] = LISTS["banned"]


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def bound(node: ast.stmt) -> list[str]:
    """Return the names that a statement binds, by a definition or an assignment."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def public(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith("_")]


@cache
def homes() -> dict[str, set[str]]:
    """Return the modules that define each public name at their top level."""
    found: dict[str, set[str]] = {}
    for path in modules():
        for name in names_of(path).at_top:
            found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


def arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    given = node.args
    return [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]


def declared(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the public names that a module or a class declares, with its functions' arguments."""
    for node in body:
        names = public(bound(node))
        yield from names
        if isinstance(node, ast.ClassDef):
            yield from declared(node.body)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (names or node.name == "__init__"):
            yield from public(arguments(node))


def written(tree: ast.Module) -> Iterator[str]:
    """Yield the keys that literal dicts have or are given, as in records and receipts, and CLI options."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            yield from matching(r"[a-z][a-z_]*", node.keys)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            yield from matching(r"[a-z][a-z_]*", [node.slice])
        elif isinstance(node, ast.Call):
            yield from matching(r"--[a-z-]+", node.args)


def matching(pattern: str, nodes: Sequence[ast.expr | None]) -> list[str]:
    strings = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [each for each in strings if re.fullmatch(pattern, each)]


class Names(NamedTuple):
    """The public names of a module: those that it defines at its top, and all, with keys and options."""

    at_top: frozenset[str]
    all: frozenset[str]


@cache
def names_of(path: Path) -> Names:
    """Return the names of a module; it is parsed once for all rules."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_top = frozenset(name for node in tree.body for name in public(bound(node)))
    return Names(at_top, frozenset({path.stem, *declared(tree.body), *written(tree)}))


def words(name: str) -> list[str]:
    """Return the words of a name, in lower case: `put_back`, `PutBack` and `--put-back` are two words."""
    return [each.lower() for each in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def stems(word: str) -> set[str]:
    """Return a word and what it may be a plural or a past form of."""
    return {word, *(word.removesuffix(ending) for ending in ("s", "es", "d", "ed"))}


@cache
def banned_in(name: str) -> str | None:
    """Return the banned word in a name, if there is one; plurals and past forms count."""
    found = words(name)
    for banned, advice in BANNED.items():
        if advice.startswith("alone:") and found != [banned]:
            continue
        parts = banned.split()
        for start in range(len(found) - len(parts) + 1):
            if all(part in stems(word) for part, word in zip(parts, found[start:], strict=False)):
                return banned
    return None


def test_every_public_name_has_one_home() -> None:
    several = {name for name, places in homes().items() if len(places) > 1}
    known = LISTS["same_in_several"].keys() | set(LISTS["still"]["in_several"])
    assert not {name: homes()[name] for name in several - known}, "give each a name of its own"
    assert known - several == set(), "no longer in several modules: take them out of the list"


def test_no_public_name_has_a_word_that_only_its_author_knows() -> None:
    found = {name: word for path in modules() for name in names_of(path).all if (word := banned_in(name))}
    known = LISTS["right_here"].keys() | set(LISTS["still"]["banned"])
    assert not {name: f"say {BANNED[word]}" for name, word in found.items() if name not in known}
    assert known - found.keys() == set(), "renamed: take them out of the list"


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("put_back", "put back"),
        ("Retold", "retold"),
        ("guesses", "guess"),
        ("sealed", "seal"),
        ("--beside", "beside"),
        ("kept", "kept"),
        ("kept_statistics", None),
        ("held", "held"),
        ("held_out", None),
        ("MOST_BYTES", "most"),
        ("handle", None),
        ("backbone", None),
        ("Questions", "question"),
    ],
)
def test_a_banned_word_is_found_in_any_spelling(name: str, word: str | None) -> None:
    assert banned_in(name) == word
