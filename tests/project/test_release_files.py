"""What goes with a release agrees: version, changelog, citation, issue templates."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml
from documentation import ROOT

import streamcl

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_there_is_one_version() -> None:
    newest = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", CHANGELOG, re.MULTILINE)[0]
    assert newest == (CITATION["version"], str(CITATION["date-released"]))
    assert PROJECT["version"] == streamcl.__version__ == newest[0]


def test_the_changelog_keeps_to_its_form() -> None:
    releases = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    assert all(re.fullmatch(r"\[Unreleased\]|\[[\d.]+\] - \d{4}-\d\d-\d\d", title) for title in releases)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE)) <= kinds


def test_the_citation_has_what_its_format_demands() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["message"]
    assert CITATION["license"] == PROJECT["license"]
    assert all(author.get("name") or author.get("family-names") for author in CITATION["authors"])
    for paper in CITATION["references"]:
        assert {"type", "title", "authors"} <= set(paper)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_an_issue_template_is_a_form(path) -> None:
    form: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name == "config.yml":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert form["name"]
    assert form["description"]
    for element in form["body"]:
        assert element["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert element["attributes"].get("label") or element["attributes"].get("value")
        assert element["type"] == "markdown" or element["id"]
