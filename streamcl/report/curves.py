"""The curves of a run over its stream: accuracy, loss and speed, with the marks of what happened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamcl.report.charts import Curve, Marks
from streamcl.report.reading import RunLog
from streamcl.report.series import as_float, as_int, submapping


def stream_curves(run: RunLog, summary: Mapping[str, Any]) -> dict[str, Curve]:
    """Return the curves "accuracy", "loss" and "flips". summary: of the run, complete."""
    held = [
        (offset, accuracy)
        for offset, row in sorted(run.holdout.items())
        if (accuracy := as_float(row.get("accuracy"))) is not None
    ]
    marks = _marks(run, summary)
    newest = run.predictions.curve.points or run.steps.accuracy.points
    return {
        "accuracy": Curve("correct before learning", newest, True, held, run.end, marks),
        "loss": Curve("loss before learning", run.steps.loss.points, False, (), run.end, marks),
        "flips": Curve("probability of another class", run.steps.flips.points, True, (), run.end, marks),
    }


def speed_curve(run: RunLog) -> Curve:
    """Return the images per second of the learner over the stream."""
    return Curve("images per second", run.steps.speed.points, False, (), run.end)


def is_drawn(curve: Curve) -> bool:
    """Return whether there is anything to draw."""
    return bool(curve.points or curve.held_out)


def _marks(run: RunLog, summary: Mapping[str, Any]) -> Marks:
    shifts = submapping(summary, "shifts")
    judged = bool(shifts.get("true"))
    return Marks(
        true=_offsets(shifts.get("true")),
        found=_offsets([found for _, found in shifts["matches"]] if judged else shifts.get("detected")),
        false=_offsets(shifts.get("false_offsets")) if judged else (),
        consolidations=_offsets(summary.get("consolidations")),
        requests=run.offsets("forget"),
        classes=run.offsets("new_class"),
    )


def _offsets(values: Any) -> tuple[int, ...]:
    found = (as_int(value) for value in values or ())
    return tuple(sorted({offset for offset in found if offset is not None}))
