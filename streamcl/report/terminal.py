"""The summary of a run as text for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamcl.report.overview import key_figures, run_sentence
from streamcl.report.wording import THIN, plural

WIDTH = 88


def text_summary(summary: Mapping[str, Any], report: Path | None = None) -> str:
    """Return the run's figures in aligned columns for a terminal of 88 columns.

    Args:
        summary: the contents of summary.json; missing figures are shown as a dash.
        report: path of the report, for the last line.
    """
    figures = key_figures(summary)
    left, right = max(len(f.name) for f in figures), max(len(f.value) for f in figures)
    rows = [f"  {f.name:<{left}}  {f.value:>{right}}  {f.note}".rstrip() for f in figures]
    lines = [*textwrap.wrap(run_sentence(summary), WIDTH), "", *rows]
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
