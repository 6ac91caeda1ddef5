"""A summary of a run, as sentences and as text, from its summary or else its records."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from streamcl.evaluation.shift_matching import match_shifts
from streamcl.report.key_figures import key_figures, total
from streamcl.report.reading import RunLog, read_run
from streamcl.report.series import as_float, as_int, submapping
from streamcl.report.wording import NARROW_SPACE, count, percent, plural

WIDTH = 88  # columns of text for the terminal


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
    last, predictions = run.steps.last, run.predictions
    found = {
        "accuracy": as_float(last.get("accuracy")) if last else predictions.accuracy,
        "window_accuracy": last.get("window_accuracy"),
        "window": predictions.window,
        "per_class": predictions.per_class,
        "support": dict(predictions.support),
        "per_domain": {name: right / (right + wrong or 1) for name, (right, wrong) in run.domains.items()},
        "domain_support": {name: sum(tally) for name, tally in run.domains.items()},
        **submapping(run.summary, "prequential"),
    }
    if predictions.window_accuracy is not None:
        found |= {"window": predictions.window, "window_accuracy": predictions.window_accuracy}
    return found


def _holdout(run: RunLog) -> dict[str, Any]:
    """Held-out figures that need no knowledge of which part was learned when."""
    rows = [run.holdout[offset] for offset in sorted(run.holdout)]
    known = [accuracy for row in rows if (accuracy := as_float(row.get("accuracy"))) is not None]
    parts = list(dict.fromkeys(part for row in rows for part in submapping(row, "parts")))
    return {
        "A_AUC": fmean(known) if known else None,
        "A_Last": known[-1] if known else None,
        "calibration_error": rows[-1].get("calibration_error") if rows else None,
        "older_than_erasure": run.holdout_outdated,
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
    now = "predicted" if held.get("older_than_erasure") else "now predicts"
    text = f"Of images that it never learned (held out) it {now} {percent(last)} correctly"
    text += " before samples were erased" if held.get("older_than_erasure") else ""
    if forgotten is None:
        return text + "."
    change = "below" if forgotten >= 0 else "above"
    return f"{text}; earlier parts of the stream are {abs(100 * forgotten):.1f} points {change} their best."


def _noticed(summary: Mapping[str, Any]) -> str:
    shifts = submapping(summary, "shifts")
    true = shifts.get("true") or []
    if not true:
        detected = total(shifts, "total", "detected")
        return f"It noticed {plural(detected, 'change')} of the stream (shifts)." if detected else ""
    found = f"It noticed {count(shifts.get('found'))} of {plural(len(true), 'change')} of the stream (shifts)"
    return f"{found}, with {plural(shifts.get('false_alarms'), 'false alarm')}."


def text_summary(summary: Mapping[str, Any], report: Path | None = None) -> str:
    """Return the run's figures in aligned columns for a terminal of 88 columns.

    Args:
        summary: the contents of summary.json; figures that are missing are left out.
        report: path of the report, for the last line.
    """
    figures = key_figures(summary)
    left, right = (max((len(f[place]) for f in figures), default=0) for place in (0, 1))
    lines = [*textwrap.wrap(run_sentence(summary), WIDTH), ""]
    lines += [f"  {f.name:<{left}}  {f.value:>{right}}  {f.note}".rstrip() for f in figures]
    if summary.get("quarantined") or summary.get("skipped_steps"):
        lines += [""]
    if quarantined := summary.get("quarantined"):
        lines += [f"  {plural(quarantined, 'record')} quarantined"]
    if skipped := summary.get("skipped_steps"):
        lines += [f"  {plural(skipped, 'step')} skipped: losses not finite"]
    lines += ["", f"Report: {report}"] if report is not None else []
    return "\n".join(lines).replace(NARROW_SPACE, " ")
