"""A receipt as a page that a privacy officer can read and print: plain HTML, no scripts, nothing fetched."""

from __future__ import annotations

import time
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from streamcl import files
from streamcl.files import Disk

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.3rem .6rem;"
    "border-bottom:1px solid #ccc}code{word-break:break-all}@media print{body{margin:0}}"
)
KINDS = {
    "samples": "Single samples",
    "subject": "Everything of a person or subject",
    "class": "A whole class",
}


def write_page(receipt: Path, content: Mapping[str, Any], *, disk: Disk = files.DISK) -> Path:
    """Write the page beside its receipt; it holds no more than the receipt does."""
    path = receipt.with_suffix(".html")
    files.atomic_write(path, page(receipt.name, content).encode(), disk=disk)
    return path


def page(name: str, content: Mapping[str, Any]) -> str:
    """The page of a receipt that is called `name` in its folder."""
    facts = "".join(_row(label, text) for label, text in _facts(content))
    places = "".join(
        _row(place["name"], f"{place['done']}: {place['what']}") for place in content.get("places", ())
    )
    table = f"<h2>Place by place</h2><table>{places}</table>" if places else ""
    check = f"streamcl verify receipts/{name}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(name)}</title>'
        f"<style>{STYLE}</style><h1>Receipt for a request to forget</h1><table>{facts}</table>{table}"
        f"<p>To check this receipt in its run directory: <code>{escape(check)}</code></p></html>\n"
    )


def _facts(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    scope = content.get("scope", {})
    facts: list[tuple[str, Any]] = [
        ("Request", content["request"]),
        ("Asked for", KINDS[content["kind"]]),
        ("Outcome", content["outcome"]),
        ("Guarantee", content.get("guarantee")),
        ("Remaining risk", content.get("residual")),
        ("Reason", content.get("reason") or content.get("why")),
        ("Method", content.get("method")),
        ("Samples", f"{scope['learned']} learned, {scope['passed']} seen" if "learned" in scope else None),
        ("Received", _moment(content["received"])),
        ("Completed", _moment(content["completed"])),
        ("Deadline", _moment(content["deadline"])),
        ("Place in the stream", f"before record {content['offset']}"),
        ("If it comes again", "it is not learned" if content["relearn"] == "deny" else "it may be learned"),
        ("Model before", content.get("learner_before")),
        ("Model after", content.get("learner_after")),
    ]
    return [(label, str(text)) for label, text in facts if text is not None]


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _row(label: str, text: str) -> str:
    return f"<tr><th>{escape(label)}</th><td>{escape(text)}</td></tr>"
