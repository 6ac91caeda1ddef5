"""Key figures and a summary of a run, as sentences and as text, from its summary or else its records."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from streamcl.evaluation.shift_matching import match_shifts
from streamcl.report.reading import RunLog, read_run
from streamcl.report.series import as_float, as_int, submapping
from streamcl.report.wording import NONE, THIN, count, decimal, duration, memory, percent, plural, points

WIDTH = 88  # columns of text for the terminal


class KeyFigure(NamedTuple):
    """One key figure: its name, its value as text, and a short note."""

    name: str
    value: str
    note: str = ""


def summary_of(run_dir: Path) -> dict[str, Any]:
    """Return the summary of the run in a directory, finished or not.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    return complete_summary(read_run(run_dir))


def complete_summary(run: RunLog) -> dict[str, Any]:
    """Return the run's summary, with missing entries computed from its records."""
    summary = dict(run.summary)
    last = run.steps.last
    summary.setdefault("run", run.name)
    summary.setdefault("samples", run.predictions.samples)
    summary.setdefault("steps", as_int(last.get("step")) or 0)
    summary.setdefault("classes", as_int(last.get("classes")) or len(run.predictions.support))
    summary.setdefault("consolidations", run.offsets("consolidation"))
    summary.setdefault("consolidated", len(summary["consolidations"]))
    summary.setdefault("quarantined", run.quarantined)
    summary.setdefault("skipped_steps", len(run.events.get("skipped", [])))
    summary["prequential"] = _prequential(run)
    summary["holdout"] = submapping(summary, "holdout") or _holdout(run)
    summary["shifts"] = _shifts(run)
    summary["requests"] = _requests(run)
    summary["timing"] = {
        "seconds": last.get("seconds"),
        "images_per_s": last.get("images_per_s"),
        "peak_memory_mb": run.steps.peak_memory_mb,
        **submapping(summary, "timing"),
    }
    return summary


def _prequential(run: RunLog) -> dict[str, Any]:
    last, curve = run.steps.last, run.predictions.curve.points
    return {
        "accuracy": as_float(last.get("accuracy")) if last else run.predictions.accuracy,
        "window_accuracy": last.get("window_accuracy") if last else (curve[-1].mean if curve else None),
        "window": run.predictions.window,
        "per_class": run.predictions.per_class,
        "support": dict(run.predictions.support),
        **submapping(run.summary, "prequential"),
    }


def _holdout(run: RunLog) -> dict[str, Any]:
    """Held-out figures that need no knowledge of which part was learned when."""
    rows = [run.holdout[offset] for offset in sorted(run.holdout)]
    known = [accuracy for row in rows if (accuracy := as_float(row.get("accuracy"))) is not None]
    parts = list(dict.fromkeys(part for row in rows for part in submapping(row, "parts")))
    return {
        "A_AUC": fmean(known) if known else None,
        "A_Last": known[-1] if known else None,
        "matrix": {
            "offsets": sorted(run.holdout),
            "parts": parts,
            "accuracy": [[submapping(row, "parts").get(part) for part in parts] for row in rows],
        },
    }


def _shifts(run: RunLog) -> dict[str, Any]:
    """True and detected shifts, matched as in the summary where it has matches."""
    shifts = dict(submapping(run.summary, "shifts"))
    if "true" not in shifts:
        start = run.events.get("start", [{}])[0]
        true = start.get("shifts")
        shifts["true"] = [offset for offset in true if offset <= run.end] if isinstance(true, list) else []
    shifts.setdefault("detected", run.offsets("shift"))
    if "matches" not in shifts:
        tolerance = as_int(shifts.get("tolerance"))
        score = match_shifts(shifts["true"], shifts["detected"], run.end if tolerance is None else tolerance)
        shifts = {**score.summary(), **shifts}
    return shifts


def _requests(run: RunLog) -> dict[str, int]:
    """Number of requests to forget by the outcome of their last attempt."""
    outcomes = {event.get("request"): str(event.get("outcome")) for event in run.events.get("forget", [])}
    return dict(Counter(outcomes.values()))


def key_figures(summary: Mapping[str, Any]) -> list[KeyFigure]:
    """Return the key figures in order; the value of an unknown one is a dash."""
    return [
        *_accuracy_figures(summary),
        *_shift_figures(summary),
        *_request_figures(summary),
        *_cost_figures(summary),
    ]


def _accuracy_figures(summary: Mapping[str, Any]) -> list[KeyFigure]:
    stream, held = submapping(summary, "prequential"), submapping(summary, "holdout")
    window = f"last {count(stream.get('window'))}: {percent(stream.get('window_accuracy'))}"
    missing = "" if as_float(held.get("A_Last")) is not None else "no held-out figures"
    auc = f"A_AUC {percent(held.get('A_AUC'))}"
    transfer = f"backward transfer {points(held.get('backward_transfer'))}"
    return [
        KeyFigure("Prequential accuracy", percent(stream.get("accuracy")), window),
        KeyFigure("Held-out A_Last", percent(held.get("A_Last")), missing or auc),
        KeyFigure("Held-out A_T", percent(held.get("A_T")), missing or "mean over parts"),
        KeyFigure("Forgetting measure", points(held.get("forgetting_measure"), sign=""), missing or transfer),
    ]


def _shift_figures(summary: Mapping[str, Any]) -> list[KeyFigure]:
    shifts = submapping(summary, "shifts")
    delays = [delay for delay in shifts.get("delays") or [] if as_float(delay) is not None]
    late = f"median delay {count(median(delays))}" if delays else ""
    consolidations = KeyFigure(
        "Consolidations", count(_total(summary, "consolidated", "consolidations")), "of the adapters"
    )
    if not shifts.get("true"):
        detected = KeyFigure(
            "Shifts detected", count(_total(shifts, "total", "detected")), "the source names none"
        )
        classes = KeyFigure("Classes", count(summary.get("classes")), "at the end")
        batches = KeyFigure("Batches", count(summary.get("steps")), f"{count(summary.get('samples'))} images")
        return [detected, consolidations, classes, batches]
    return [
        KeyFigure("Shifts found", f"{count(shifts.get('found'))} of {count(len(shifts['true']))}", late),
        KeyFigure("Shifts missed", count(shifts.get("missed")), "not detected in time"),
        KeyFigure("False alarms", count(shifts.get("false_alarms")), "detected, none there"),
        consolidations,
    ]


def _request_figures(summary: Mapping[str, Any]) -> list[KeyFigure]:
    """Figures of requests to forget; empty where there were none."""
    outcomes = submapping(summary, "requests")
    if not outcomes:
        return []
    others = [f"{count(outcomes[name])} {name}" for name in ("failed", "refused") if name in outcomes]
    done = f"{count(outcomes.get('done', 0))} of {count(sum(outcomes.values()))}"
    return [KeyFigure("Requests forgotten", done, ", ".join(others) or "see the receipts")]


def _total(counts: Mapping[str, Any], name: str, listed: str) -> int:
    """The entry `name`; where it is missing, the length of the list `listed`, which may be cut."""
    known = as_int(counts.get(name))
    return len(counts.get(listed) or []) if known is None else known


def _cost_figures(summary: Mapping[str, Any]) -> list[KeyFigure]:
    timing = submapping(summary, "timing")
    device = timing.get("device") or summary.get("device") or submapping(timing, "environment").get("device")
    machine = KeyFigure("Device", str(device or NONE), str(timing.get("precision") or ""))
    full = bool(submapping(summary, "requests"))  # then the last row of four has no place for it
    loop = f"whole loop, {machine.value} {machine.note}".rstrip() if full else "whole loop"
    figures = [
        KeyFigure("Images per second", decimal(timing.get("images_per_s")), loop),
        KeyFigure("Duration", duration(timing.get("seconds")), f"{count(summary.get('steps'))} batches"),
        KeyFigure("Peak memory", memory(timing.get("peak_memory_mb")), "of the process"),
    ]
    return figures if full else [*figures, machine]


def run_sentence(summary: Mapping[str, Any]) -> str:
    """Return a description of the run in one to three sentences."""
    if not as_float(summary.get("samples")):
        return "No image has passed through this run yet."
    return " ".join(part for part in (_learned(summary), _remembered(summary), _noticed(summary)) if part)


def _learned(summary: Mapping[str, Any]) -> str:
    accuracy = as_float(submapping(summary, "prequential").get("accuracy"))
    learner = str(summary.get("learner") or "the learner")
    text = f"In one pass over {plural(summary.get('samples'), 'image')}, {learner} saw "
    text += plural(summary.get("classes"), "class")
    return text + (
        "." if accuracy is None else f" and predicted {percent(accuracy)} correctly before learning them."
    )


def _remembered(summary: Mapping[str, Any]) -> str:
    held = submapping(summary, "holdout")
    last, forgotten = as_float(held.get("A_Last")), as_float(held.get("forgetting_measure"))
    if last is None:
        return ""
    text = f"On held-out images of all parts learned its final accuracy is {percent(last)}"
    if forgotten is None:
        return text + "."
    change = "below" if forgotten >= 0 else "above"
    return f"{text}, its earlier parts {abs(100 * forgotten):.1f} points {change} their best."


def _noticed(summary: Mapping[str, Any]) -> str:
    shifts, consolidated = submapping(summary, "shifts"), _total(summary, "consolidated", "consolidations")
    true = shifts.get("true") or []
    if not true:
        done = [f"detected {plural(_total(shifts, 'total', 'detected'), 'shift')}"]
    else:
        done = [
            f"found {count(shifts.get('found'))} of {plural(len(true), 'shift')}",
            f"raised {plural(shifts.get('false_alarms'), 'false alarm')}",
        ]
    done += [f"consolidated its adapters {plural(consolidated, 'time')}"] if consolidated else []
    *first, last = done
    return f"It {', '.join(first)} and {last}." if first else f"It {last}."


def text_summary(summary: Mapping[str, Any], report: Path | None = None) -> str:
    """Return the run's figures in aligned columns for a terminal of 88 columns.

    Args:
        summary: the contents of summary.json; missing figures are shown as a dash.
        report: path of the report, for the last line.
    """
    figures = key_figures(summary)
    left, right = max(len(f.name) for f in figures), max(len(f.value) for f in figures)
    lines = [*textwrap.wrap(run_sentence(summary), WIDTH), ""]
    lines += [f"  {f.name:<{left}}  {f.value:>{right}}  {f.note}".rstrip() for f in figures]
    if summary.get("quarantined") or summary.get("skipped_steps"):
        lines += [""]
    if quarantined := summary.get("quarantined"):
        lines += [f"  {plural(quarantined, 'record')} quarantined"]
    if skipped := summary.get("skipped_steps"):
        lines += [f"  {plural(skipped, 'step')} skipped: losses not finite"]
    lines += ["", f"Report: {report}"] if report is not None else []
    return "\n".join(lines).replace(THIN, " ")
