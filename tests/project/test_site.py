"""The documentation site has every page and every public name; `make docs` itself checks the links."""

from __future__ import annotations

import re

import pytest
from documentation import DOCS, PAGES, ROOT, blocks_of

import streamcl
import streamcl.errors

CONFIGURATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
LISTED = re.findall(r": ([\w./-]+\.(?:md|ipynb))$", CONFIGURATION, re.MULTILINE)
RUN_BY = {
    "README.md": "test_readme.py",
    "tutorial.md": "test_tutorial.py",
    "custom_sources.md": "test_documentation.py",
    "python.md": "test_documentation.py",
    "testing.md": "test_documentation.py",
    "live_sources.md": "test_shown_parts.py",
    "several_devices.md": "test_shown_parts.py",
    "serving.md": "test_serving_page.py",
}
"""The test module that runs the Python of a page."""


def test_every_page_is_in_the_navigation() -> None:
    pages = {page.name for page in DOCS.glob("*.md")}
    pages |= {"README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"}
    pages |= {f"notebooks/{page.name}" for page in (DOCS / "notebooks").glob("*.ipynb")}
    results = (ROOT / "benchmarks" / "results").glob("*.md")
    assert set(LISTED) == pages | {page.relative_to(ROOT).as_posix() for page in results}
    assert len(LISTED) == len(set(LISTED))


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: streamcl\.(\w+)$", text, re.MULTILINE))
    with_their_module = {name for name in streamcl.__all__ if hasattr(streamcl.errors, name)}
    assert set(streamcl.__all__) - {"__version__"} - with_their_module <= shown
    assert shown - set(streamcl.__all__) == {"errors", "protocols", "testing"}


def test_pages_load_nothing_from_elsewhere() -> None:
    assert "font: false" in CONFIGURATION
    assert "extra_javascript" not in CONFIGURATION


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_that_is_shown_is_run(page) -> None:
    if any(block.language == "python" for block in blocks_of(page)):
        assert list((ROOT / "tests").rglob(RUN_BY[page.name]))
