"""Writes report.html: one self-contained file, made from the run directory alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from streamcl.report import tables, wording
from streamcl.report.charts import Curve, Marks, draw
from streamcl.report.overview import completed, inner, key_figures, sentence
from streamcl.report.reading import RunLog, read_run
from streamcl.report.requests import MOST, request_rows, tests_told
from streamcl.report.series import number, whole_number
from streamcl.storage.files import atomic_write


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into the run directory and return its path.

    Works on a whole, an interrupted, an empty or a damaged run, and says what is missing. The page loads
    nothing from anywhere. Raises OSError where files cannot be opened or written, FileNotFoundError where
    there is no such directory.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(f"there is no run directory {run_dir}")
    path = run_dir / "report.html"
    atomic_write(path, render(read_run(run_dir)).encode("utf-8", "replace"))
    return path


def render(run: RunLog) -> str:
    """The page as a string; the same run gives the same page."""
    environment = Environment(
        loader=PackageLoader("streamcl", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = ("count", "percent", "points", "decimal", "duration", "memory", "plural", "visible")
    environment.filters.update({word: getattr(wording, word) for word in words})
    css = environment.loader.get_source(environment, "report.css")[0] if environment.loader else ""
    return environment.get_template("report.html.j2").render(css=Markup(css), **_content(run))


def _content(run: RunLog) -> dict[str, Any]:
    summary = completed(run)
    stream, shifts = inner(summary, "prequential"), inner(summary, "shifts")
    matrix = tables.accuracy_matrix(inner(inner(summary, "holdout"), "matrix"))
    shift_rows = tables.shift_rows(run, shifts)
    requests = request_rows(run.folder, run) if run.folder is not None else []
    return {
        "run": run,
        "summary": summary,
        "sentence": sentence(summary),
        "figures": key_figures(summary),
        "charts": _charts(run, summary),
        "shift_rows": shift_rows[: tables.MOST_SHIFTS],
        "shifts_left_out": max(0, len(shift_rows) - tables.MOST_SHIFTS),
        "requests": requests[-MOST:],
        "requests_left_out": max(0, len(requests) - MOST),
        "tests": tests_told(run),
        "judged": bool(shifts.get("true")),
        "matrix": matrix,
        "classes": tables.bars(
            inner(stream, "per_class"),
            inner(stream, "support") or run.guesses.support,
            tables.latest_per_class(run),
        ),
        "class_count": len(inner(stream, "per_class")),
        "domains": tables.bars(inner(stream, "per_domain"), inner(stream, "domain_support"), {}),
        "confusion": tables.confusion(run.guesses),
        "confused": tables.most_confused(run.guesses),
        "galleries": tables.galleries(run),
        "environment": _environment(run, summary),
    }


def _charts(run: RunLog, summary: Mapping[str, Any]) -> dict[str, Markup]:
    """The curves as SVG that holds no text of the run's; an empty string for one without points."""
    shifts = inner(summary, "shifts")
    judged = bool(shifts.get("true"))
    marks = Marks(
        true=_offsets(shifts.get("true")),
        found=_offsets([found for _, found in shifts["matches"]] if judged else shifts.get("detected")),
        false=_offsets(shifts.get("false_offsets")) if judged else (),
        consolidations=_offsets(summary.get("consolidations")),
        requests=run.offsets("forget"),
    )
    held = [
        (offset, accuracy)
        for offset, row in sorted(run.holdout.items())
        if (accuracy := number(row.get("accuracy"))) is not None
    ]
    window = run.steps.accuracy.points or run.guesses.curve.points
    rising = Curve("prequential accuracy, windowed", window, True, held, run.end, marks)
    falling = Curve("loss before learning", run.steps.loss.points, False, (), run.end, marks)
    curves = {"accuracy": rising, "loss": falling}
    drawn = {name: draw(curve) if curve.points or curve.held else "" for name, curve in curves.items()}
    return {name: Markup(svg) for name, svg in drawn.items()}


def _offsets(values: Any) -> tuple[int, ...]:
    found = (whole_number(value) for value in values or ())
    return tuple(sorted({offset for offset in found if offset is not None}))


def _environment(run: RunLog, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where and on what the run was made: plain values of the summary's timing and of the start event."""
    start = run.events.get("start", [{}])[-1]
    known = {"streamcl": summary.get("streamcl"), **inner(start, "environment"), **inner(summary, "timing")}
    known |= {**inner(known, "environment"), **inner(summary, "environment")}
    plain = {name: value for name, value in known.items() if isinstance(value, str | int | float)}
    return [(name.replace("_", " "), _shown(value)) for name, value in plain.items()]


def _shown(value: Any) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else str(value)
