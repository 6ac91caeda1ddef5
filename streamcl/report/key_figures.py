"""The key figures of a run in plain words, and the same by the names that papers use."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

from streamcl.report.series import as_float, as_int, submapping
from streamcl.report.wording import count, decimal, duration, memory, percent, points


class KeyFigure(NamedTuple):
    """One key figure: its name in plain words, its value as text, and a short note."""

    name: str
    value: str
    note: str = ""


class Term(NamedTuple):
    """A figure by the name that the literature uses, its value as text, and its meaning."""

    name: str
    value: str
    meaning: str


BEFORE_ERASURE = "before the last erasure"
"""Says of figures that they are of a model which still had the samples."""


def key_figures(summary: Mapping[str, Any]) -> list[KeyFigure]:
    """Return the key figures in order; unknown ones are left out."""
    return [
        *_accuracy_figures(summary),
        *_stream_figures(summary),
        *_request_figures(summary),
        *_cost_figures(summary),
    ]


def _accuracy_figures(summary: Mapping[str, Any]) -> list[KeyFigure]:
    stream, held = submapping(summary, "prequential"), submapping(summary, "holdout")
    window, samples = as_int(stream.get("window")), as_int(summary.get("samples")) or 0
    newest = window is not None and window < samples and as_float(stream.get("window_accuracy")) is not None
    note = f"of the last {count(window)}: {percent(stream.get('window_accuracy'))}" if newest else ""
    own = f"{count(kept)} images " if (kept := as_int(summary.get("held_out"))) else ""
    when = BEFORE_ERASURE if held.get("older_than_erasure") else "at the end"
    older = f", {BEFORE_ERASURE}" if held.get("older_than_erasure") else ""
    lost = f"of their best accuracy{older}"
    return [
        *_known("Correct before learning", stream.get("accuracy"), percent, note),
        *_known(
            "Correct on held-out images", held.get("A_Last"), percent, f"{own}of the classes seen, {when}"
        ),
        *_known("Lost on earlier parts", held.get("forgetting_measure"), _lost, lost),
    ]


def _lost(value: Any) -> str:
    return points(value, sign="")


def _known(name: str, value: Any, shown: Any, note: str) -> list[KeyFigure]:
    """Return the figure as a list, which is empty where it is unknown."""
    return [] if as_float(value) is None else [KeyFigure(name, shown(value), note)]


def _stream_figures(summary: Mapping[str, Any]) -> list[KeyFigure]:
    shifts = submapping(summary, "shifts")
    classes = _known(
        "Classes seen", summary.get("classes"), count, f"in {count(summary.get('samples'))} images"
    )
    true = shifts.get("true") or []
    if not true:
        detected = count(total(shifts, "total", "detected"))
        return [*classes, KeyFigure("Shifts found", detected, "the source names none")] if summary else []
    delays = [delay for delay in shifts.get("delays") or [] if as_float(delay) is not None]
    late = f"{count(median(delays))} images late, " if delays else ""
    alarms = f"{late}{count(shifts.get('false_alarms'))} false alarms"
    return [
        *classes,
        KeyFigure("Shifts found", f"{count(shifts.get('found'))} of {count(len(true))}", alarms),
    ]


def _request_figures(summary: Mapping[str, Any]) -> list[KeyFigure]:
    """Figures of requests to forget; empty where there were none."""
    outcomes = submapping(summary, "requests")
    if not outcomes:
        return []
    others = [f"{count(outcomes[name])} {name}" for name in ("failed", "refused") if name in outcomes]
    done = f"{count(outcomes.get('done', 0))} of {count(sum(outcomes.values()))}"
    return [KeyFigure("Requests forgotten", done, ", ".join(others) or "see the receipts")]


def total(counts: Mapping[str, Any], name: str, listed: str) -> int:
    """Return the entry `name`; where it is missing, the length of the list `listed`, which may be cut."""
    known = as_int(counts.get(name))
    return len(counts.get(listed) or []) if known is None else known


def _cost_figures(summary: Mapping[str, Any]) -> list[KeyFigure]:
    timing = submapping(summary, "timing")
    device = timing.get("device") or summary.get("device") or submapping(timing, "environment").get("device")
    machine = f"{device or ''} {timing.get('precision') or ''}".strip()
    return [
        *_known("Images per second", timing.get("images_per_s"), decimal, machine),
        *_known("Duration", timing.get("seconds"), duration, f"{count(summary.get('steps'))} batches"),
        *_known("Peak memory", timing.get("peak_memory_mb"), memory, "of the process"),
    ]


def terms(summary: Mapping[str, Any]) -> list[Term]:
    """Return the figures by the names that the literature uses; unknown ones are left out."""
    stream, held = submapping(summary, "prequential"), submapping(summary, "holdout")
    shifts = submapping(summary, "shifts")
    judged = shifts if shifts.get("true") else {}
    merged = total(summary, "consolidated", "consolidations") or None
    known = (
        ("prequential accuracy", percent, stream.get("accuracy"), "each image is predicted, then learned"),
        ("A_Last", percent, held.get("A_Last"), "held-out accuracy over the classes seen, at the end"),
        (
            "calibration error",
            percent,
            held.get("calibration_error"),
            "held-out confidence and accuracy apart (ECE, 15 bins), over the classes seen, at the end",
        ),
        (
            "prequential calibration error",
            percent,
            stream.get("calibration_error"),
            "the same of predictions before learning, samples of new classes included",
        ),
        ("A_AUC", percent, held.get("A_AUC"), "the same, as the mean over all evaluations of the run"),
        ("A_T", percent, held.get("A_T"), "held-out accuracy, as the mean over the parts of the stream"),
        (
            "forgetting measure",
            _lost,
            held.get("forgetting_measure"),
            "best accuracy so far less the present one, as the mean over earlier parts",
        ),
        (
            "backward transfer",
            points,
            held.get("backward_transfer"),
            "present accuracy less the one right after learning, as the mean over earlier parts",
        ),
        ("shifts missed", count, judged.get("missed"), "true ones without a detection soon after"),
        ("false alarms", count, judged.get("false_alarms"), "detections without a true shift before them"),
        ("consolidations", count, merged, "adapters were added to the frozen weights and began anew"),
    )
    return [
        Term(name, shown(value), meaning)
        for name, shown, value, meaning in known
        if as_float(value) is not None
    ]
