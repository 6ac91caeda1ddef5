"""The few lines that a run leaves in the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamcl.report.overview import key_figures, sentence
from streamcl.report.wording import THIN, plural

WIDTH = 88


def text_summary(summary: Mapping[str, Any], report: Path | None = None) -> str:
    """The run's figures, aligned, for a terminal of 88 columns; it ends with where the report lies.

    summary: what summary.json holds; what is missing shows as a dash.
    """
    figures = key_figures(summary)
    left, right = max(len(f.name) for f in figures), max(len(f.value) for f in figures)
    rows = [f"  {f.name:<{left}}  {f.value:>{right}}  {f.note}".rstrip() for f in figures]
    lines = [*textwrap.wrap(sentence(summary), WIDTH), "", *rows]
    lines += ["", *trouble] if (trouble := _trouble(summary)) else []
    lines += ["", f"Report: {report}"] if report is not None else []
    return "\n".join(lines).replace(THIN, " ")


def _trouble(summary: Mapping[str, Any]) -> list[str]:
    words = {
        "quarantined": ("record", "quarantined"),
        "skipped_steps": ("step", "skipped: losses not finite"),
    }
    return [
        f"  {plural(summary[key], noun)} {what}" for key, (noun, what) in words.items() if summary.get(key)
    ]
