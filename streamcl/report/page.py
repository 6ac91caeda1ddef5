"""Writes report.html, one self-contained file, from a run directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from streamcl.forgetting.receipts.archive import html_environment, report_css
from streamcl.report import tables, wording
from streamcl.report.charts import NARROW, WIDE, Curve, draw
from streamcl.report.curves import is_drawn, stream_curves
from streamcl.report.key_figures import key_figures, terms
from streamcl.report.overview import complete_summary, run_sentence
from streamcl.report.reading import RunLog, read_run
from streamcl.report.series import submapping
from streamcl.storage.files import atomic_write


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into the run directory and return its path.

    The run may be complete, interrupted, empty or damaged; the page names missing files. It loads nothing.

    Raises:
        OSError: files cannot be opened or written.
        FileNotFoundError: there is no such directory.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(f"there is no run directory {run_dir}")
    path = run_dir / "report.html"
    atomic_write(path, render(read_run(run_dir)).encode("utf-8", "replace"))
    return path


def render(run: RunLog) -> str:
    """Return the page as HTML; the same run gives the same page."""
    environment = html_environment("report")
    words = ("count", "percent", "points", "decimal", "duration", "memory", "plural", "visible")
    environment.filters.update({word: getattr(wording, word) for word in words})
    return environment.get_template("report.html.j2").render(css=report_css(), **_content(run))


def _content(run: RunLog) -> dict[str, Any]:
    summary = complete_summary(run)
    stream, shifts = submapping(summary, "prequential"), submapping(summary, "shifts")
    matrix = tables.accuracy_matrix(submapping(submapping(summary, "holdout"), "matrix"))
    shift_rows = tables.shift_rows(run, shifts)
    charts = {
        name: _both_widths(curve) if is_drawn(curve) else Markup("")
        for name, curve in stream_curves(run, summary).items()
    }
    requests = tables.request_rows(run.folder, run) if run.folder is not None else []
    return {
        "run": run,
        "summary": summary,
        "sentence": run_sentence(summary),
        "figures": key_figures(summary),
        "terms": terms(summary),
        "window": run.predictions.window,
        "charts": charts,
        "new_classes": bool(run.offsets("new_class")),
        "attention": tables.attention_rows(run.predictions),
        "shift_rows": shift_rows[: tables.MAX_SHIFTS],
        "shifts_left_out": max(0, len(shift_rows) - tables.MAX_SHIFTS),
        "requests": requests[-tables.MAX_REQUESTS :],
        "requests_left_out": max(0, len(requests) - tables.MAX_REQUESTS),
        "tests": tables.relapse_sentence(run),
        "judged": bool(shifts.get("true")),
        "matrix": matrix,
        "classes": tables.bars(
            submapping(stream, "per_class"),
            submapping(stream, "support") or run.predictions.support,
            tables.latest_per_class(run),
        ),
        "class_count": len(submapping(stream, "per_class")),
        "domains": tables.bars(submapping(stream, "per_domain"), submapping(stream, "domain_support"), {}),
        "confusion": tables.confusion_matrix(run.predictions),
        "confused": tables.largest_confusions(run.predictions),
        "galleries": tables.thumbnail_groups(run),
        "environment": _environment(run, summary),
    }


def _both_widths(curve: Curve) -> Markup:
    """The curve as drawn for a screen or paper, and for a phone; the style sheet shows one of them."""
    drawn = {"broad": draw(curve, WIDE), "narrow": draw(curve, NARROW)}
    return Markup("").join(
        Markup('<div class="{}">{}</div>').format(width, Markup(svg)) for width, svg in drawn.items()
    )


def _environment(run: RunLog, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Environment of the run: plain values of the summary's timing and of the start event."""
    start = run.events.get("start", [{}])[-1]
    known = {
        "streamcl": summary.get("streamcl"),
        **submapping(start, "environment"),
        **submapping(summary, "timing"),
    }
    known |= {**submapping(known, "environment"), **submapping(summary, "environment")}
    plain = {name: value for name, value in known.items() if isinstance(value, str | int | float)}
    return [(name.replace("_", " "), _shown(value)) for name, value in plain.items()]


def _shown(value: Any) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else str(value)
