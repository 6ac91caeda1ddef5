"""Writes the map of modules in docs/architecture.md from their first sentences: `make generated`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = Path(__file__).with_name("architecture.md")
BEGIN, END = "<!-- modules -->", "<!-- /modules -->"


def module_map() -> str:
    """Return the map as Markdown: one list for each folder of the two packages."""
    return "\n".join(line for package in ("streamcl", "streams") for line in _folder(ROOT / package))


def with_map(page: str) -> str:
    """Return the page with a new map between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{module_map()}\n{END}{after}"


def _folder(folder: Path) -> Iterator[str]:
    modules = sorted(path for path in folder.glob("*.py") if path.stem not in {"__init__", "__main__"})
    yield f"\n**{folder.relative_to(ROOT)}/** {_sentence(folder / '__init__.py')}\n"
    for path in modules:
        yield f"- `{path.stem}`: {_sentence(path)}"
    for inner in sorted(path.parent for path in folder.glob("*/__init__.py")):
        yield from _folder(inner)


def _sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=[.!?])\s", " ".join(text.split("\n\n")[0].split()), maxsplit=1)[0]


if __name__ == "__main__":
    TARGET.write_text(with_map(TARGET.read_text(encoding="utf-8")), encoding="utf-8")
