"""The run in figures and in one sentence, from its summary or, without one, from its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from streamcl.evaluation.shift_matching import match_shifts
from streamcl.report.reading import RunLog, read_run
from streamcl.report.series import number, whole_number
from streamcl.report.wording import NONE, count, decimal, duration, memory, percent, plural, points


@dataclass(frozen=True, slots=True)
class Figure:
    """One key figure: its name, its value, and a few words beside it."""

    name: str
    value: str
    note: str = ""


def summary_of(run_dir: Path) -> dict[str, Any]:
    """The figures of the run in that directory, finished or not. FileNotFoundError where there is none."""
    return completed(read_run(run_dir))


def completed(run: RunLog) -> dict[str, Any]:
    """The run's summary; of what it lacks, what can be computed from the records."""
    summary = dict(run.summary)
    last = run.steps.last
    summary.setdefault("run", run.name)
    summary.setdefault("samples", run.guesses.samples)
    summary.setdefault("steps", whole_number(last.get("step")) or 0)
    summary.setdefault("classes", whole_number(last.get("classes")) or len(run.guesses.support))
    summary.setdefault("consolidations", run.offsets("consolidation"))
    summary.setdefault("consolidated", len(summary["consolidations"]))
    summary.setdefault("quarantined", run.quarantined)
    summary.setdefault("skipped_steps", len(run.events.get("skipped", [])))
    summary["prequential"] = _prequential(run)
    summary["holdout"] = inner(summary, "holdout") or _holdout(run)
    summary["shifts"] = _shifts(run)
    summary["requests"] = _requests(run)
    summary["timing"] = {
        "seconds": last.get("seconds"),
        "images_per_s": last.get("images_per_s"),
        "peak_memory_mb": run.steps.peak_memory_mb,
        **inner(summary, "timing"),
    }
    return summary


def inner(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping under `key`, or an empty one."""
    value = mapping.get(key)
    return value if isinstance(value, Mapping) else {}


def _prequential(run: RunLog) -> dict[str, Any]:
    last, curve = run.steps.last, run.guesses.curve.points
    return {
        "accuracy": number(last.get("accuracy")) if last else run.guesses.accuracy,
        "window_accuracy": last.get("window_accuracy") if last else (curve[-1].mean if curve else None),
        "window": run.guesses.window,
        "per_class": run.guesses.per_class,
        "support": dict(run.guesses.support),
        **inner(run.summary, "prequential"),
    }


def _holdout(run: RunLog) -> dict[str, Any]:
    """What can be told without knowing which parts were taught when."""
    rows = [run.holdout[offset] for offset in sorted(run.holdout)]
    known = [accuracy for row in rows if (accuracy := number(row.get("accuracy"))) is not None]
    parts = list(dict.fromkeys(part for row in rows for part in inner(row, "parts")))
    return {
        "A_AUC": fmean(known) if known else None,
        "A_Last": known[-1] if known else None,
        "matrix": {
            "offsets": sorted(run.holdout),
            "parts": parts,
            "accuracy": [[inner(row, "parts").get(part) for part in parts] for row in rows],
        },
    }


def _shifts(run: RunLog) -> dict[str, Any]:
    """True and detected shifts, matched; by the summary where it has done that."""
    shifts = dict(inner(run.summary, "shifts"))
    if "true" not in shifts:
        start = run.events.get("start", [{}])[0]
        true = start.get("shifts")
        shifts["true"] = [offset for offset in true if offset <= run.end] if isinstance(true, list) else []
    shifts.setdefault("detected", run.offsets("shift"))
    if "matches" not in shifts:
        tolerance = whole_number(shifts.get("tolerance"))
        score = match_shifts(shifts["true"], shifts["detected"], run.end if tolerance is None else tolerance)
        shifts = {**score.summary(), **shifts}
    return shifts


def _requests(run: RunLog) -> dict[str, int]:
    """How many requests to forget came to each outcome, by the last attempt at each."""
    outcomes = {event.get("request"): str(event.get("outcome")) for event in run.events.get("forget", [])}
    return dict(Counter(outcomes.values()))


def key_figures(summary: Mapping[str, Any]) -> list[Figure]:
    """The figures that stand at the top, in order; a dash where one is not known."""
    return [
        *_accuracy_figures(summary),
        *_shift_figures(summary),
        *_request_figures(summary),
        *_cost_figures(summary),
    ]


def _accuracy_figures(summary: Mapping[str, Any]) -> list[Figure]:
    stream, held = inner(summary, "prequential"), inner(summary, "holdout")
    window = f"last {count(stream.get('window'))}: {percent(stream.get('window_accuracy'))}"
    missing = "" if number(held.get("A_Last")) is not None else "no held-out figures"
    auc = f"A_AUC {percent(held.get('A_AUC'))}"
    transfer = f"backward transfer {points(held.get('backward_transfer'))}"
    return [
        Figure("Prequential accuracy", percent(stream.get("accuracy")), window),
        Figure("Held-out A_Last", percent(held.get("A_Last")), missing or auc),
        Figure("Held-out A_T", percent(held.get("A_T")), missing or "mean over parts"),
        Figure("Forgetting measure", points(held.get("forgetting_measure"), sign=""), missing or transfer),
    ]


def _shift_figures(summary: Mapping[str, Any]) -> list[Figure]:
    shifts = inner(summary, "shifts")
    delays = [delay for delay in shifts.get("delays") or [] if number(delay) is not None]
    late = f"median delay {count(median(delays))}" if delays else ""
    consolidations = Figure(
        "Consolidations", count(_total(summary, "consolidated", "consolidations")), "of the adapters"
    )
    if not shifts.get("true"):
        detected = Figure(
            "Shifts detected", count(_total(shifts, "total", "detected")), "the source names none"
        )
        classes = Figure("Classes", count(summary.get("classes")), "at the end")
        batches = Figure("Batches", count(summary.get("steps")), f"{count(summary.get('samples'))} images")
        return [detected, consolidations, classes, batches]
    return [
        Figure("Shifts found", f"{count(shifts.get('found'))} of {count(len(shifts['true']))}", late),
        Figure("Shifts missed", count(shifts.get("missed")), "not detected in time"),
        Figure("False alarms", count(shifts.get("false_alarms")), "detected, none there"),
        consolidations,
    ]


def _request_figures(summary: Mapping[str, Any]) -> list[Figure]:
    """Of requests to forget; nothing where there were none."""
    outcomes = inner(summary, "requests")
    if not outcomes:
        return []
    others = [f"{count(outcomes[name])} {name}" for name in ("failed", "refused") if name in outcomes]
    done = f"{count(outcomes.get('done', 0))} of {count(sum(outcomes.values()))}"
    return [Figure("Requests forgotten", done, ", ".join(others) or "see the receipts")]


def _total(counts: Mapping[str, Any], name: str, listed: str) -> int:
    """The count of that name; where there is none, of what is listed, which is at most that."""
    known = whole_number(counts.get(name))
    return len(counts.get(listed) or []) if known is None else known


def _cost_figures(summary: Mapping[str, Any]) -> list[Figure]:
    timing = inner(summary, "timing")
    device = timing.get("device") or summary.get("device") or inner(timing, "environment").get("device")
    machine = Figure("Device", str(device or NONE), str(timing.get("precision") or ""))
    full = bool(inner(summary, "requests"))  # then there is no place for it in the last row of four
    loop = f"whole loop, {machine.value} {machine.note}".rstrip() if full else "whole loop"
    figures = [
        Figure("Images per second", decimal(timing.get("images_per_s")), loop),
        Figure("Duration", duration(timing.get("seconds")), f"{count(summary.get('steps'))} batches"),
        Figure("Peak memory", memory(timing.get("peak_memory_mb")), "of the process"),
    ]
    return figures if full else [*figures, machine]


def sentence(summary: Mapping[str, Any]) -> str:
    """What happened, in words."""
    if not number(summary.get("samples")):
        return "No image has passed through this run yet."
    return " ".join(part for part in (_learned(summary), _remembered(summary), _noticed(summary)) if part)


def _learned(summary: Mapping[str, Any]) -> str:
    accuracy = number(inner(summary, "prequential").get("accuracy"))
    learner = str(summary.get("learner") or "the learner")
    told = f"In one pass over {plural(summary.get('samples'), 'image')}, {learner} met "
    told += plural(summary.get("classes"), "class")
    return told + ("." if accuracy is None else f" and named {percent(accuracy)} right before learning them.")


def _remembered(summary: Mapping[str, Any]) -> str:
    held = inner(summary, "holdout")
    last, forgotten = number(held.get("A_Last")), number(held.get("forgetting_measure"))
    if last is None:
        return ""
    told = f"On held-out images of everything taught it ended at {percent(last)}"
    if forgotten is None:
        return told + "."
    change = "below" if forgotten >= 0 else "above"
    return f"{told}, its earlier parts {abs(100 * forgotten):.1f} points {change} their best."


def _noticed(summary: Mapping[str, Any]) -> str:
    shifts, consolidated = inner(summary, "shifts"), _total(summary, "consolidated", "consolidations")
    true = shifts.get("true") or []
    if not true:
        told = [f"noticed {plural(_total(shifts, 'total', 'detected'), 'shift')}"]
    else:
        told = [
            f"found {count(shifts.get('found'))} of {plural(len(true), 'shift')}",
            f"raised {plural(shifts.get('false_alarms'), 'false alarm')}",
        ]
    told += [f"consolidated its adapters {plural(consolidated, 'time')}"] if consolidated else []
    *first, last = told
    return f"It {', '.join(first)} and {last}." if first else f"It {last}."
