"""The parts of the live page as HTML: what a run has recorded so far, in the words of the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from streamcl.forgetting.ledger.ledger import LEDGER
from streamcl.forgetting.ledger.ledger_reader import newest_requests
from streamcl.forgetting.receipts.archive import html_environment, receipt_path
from streamcl.report import tables, wording
from streamcl.report.charts import Curve
from streamcl.report.curves import is_drawn, speed_curve, stream_curves
from streamcl.report.following import RunFollower
from streamcl.report.key_figures import KeyFigure, key_figures
from streamcl.report.overview import complete_summary
from streamcl.report.reading import RunLog
from streamcl.report.series import as_int, submapping
from streamcl.report.wording import count, plural

LearningState: TypeAlias = Literal["running", "finished", "stopped"]

IDLE_SECONDS = 15.0
"""After as long without a new record a run that goes on is said to wait: longer than most batches take."""
MAX_LISTED = 50
"""Rows of a table of the page, the newest."""
TABLE_ROWS = 24
"""Points of a curve in the table behind its chart."""
MAX_OFFERED = 1000
"""Classes that are offered for a correction or a request, in the order of their appearance."""


@dataclass(frozen=True, slots=True)
class RunState:
    """The state of a run beyond the records in its directory.

    learning: whether the stream goes on. now: seconds since the epoch. lag: records that wait at the source,
    where known. served: about the processes that predict; "" where none do. name: of the run; "" is that of
    its directory.
    """

    learning: LearningState
    now: float
    lag: int | None = None
    served: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class LivePage:
    """The page at one moment: parts as HTML by name, curves by name, and the names of the classes."""

    parts: Mapping[str, str]
    curves: Mapping[str, Curve]
    classes: Sequence[str]


def live_page(follower: RunFollower, state: RunState) -> LivePage:
    """Return the page of a run, as far as the run was read."""
    run = follower.log
    summary = complete_summary(run)
    curves = {**stream_curves(run, summary), "speed": speed_curve(run)}
    content: dict[str, dict[str, Any]] = {
        "title": {"name": state.name or str(summary["run"])},
        "health": _health(follower, state),
        "figures": {"figures": _figures(run, state, summary)},
        **{name: _chart(curve) for name, curve in curves.items()},
        **_tables(follower, summary),
    }
    content["accuracy"] |= {"window": run.predictions.window, "new_classes": bool(run.offsets("new_class"))}
    parts = {name: render_part(name, arguments) for name, arguments in content.items()}
    drawn = {name: _still(each) for name, each in curves.items() if is_drawn(each)}
    return LivePage(parts, drawn, list(run.predictions.support)[:MAX_OFFERED])


def render_part(name: str, arguments: Mapping[str, Any]) -> str:
    """Return a part of the page: the macro of that name in live.html.j2, called with the arguments."""
    environment = html_environment("report")
    words = ("count", "percent", "decimal", "memory", "plural", "visible")
    environment.filters.update({word: getattr(wording, word) for word in words})
    environment.filters["moment"] = _moment
    macros = environment.get_template("live.html.j2").module
    return str(getattr(macros, name)(**arguments)).strip()


def _health(follower: RunFollower, state: RunState) -> dict[str, Any]:
    run, written = follower.log, follower.written
    idle = state.learning == "running" and (written is None or state.now - written >= IDLE_SECONDS)
    return {
        "learning": state.learning,
        "idle": idle,
        "records": run.end,
        "written": written,
        "served": state.served,
        "behind": follower.behind / 2**20,
        "notes": run.notes,
    }


def _figures(run: RunLog, state: RunState, summary: Mapping[str, Any]) -> list[KeyFigure]:
    """Return the figures of a stream that goes on, and those of the report that are known."""
    start, last = run.events.get("start", [{}])[-1], run.steps.last
    length = as_int(start.get("length"))
    ahead = []
    if state.lag is not None:
        ahead.append(KeyFigure("Lag", count(state.lag), "records wait at the source"))
    elif length is not None:
        to_come = max(0, length - run.end)
        ahead.append(KeyFigure("To come", count(to_come), f"of {plural(length, 'record')}"))
    passed = KeyFigure("Records passed", count(run.end), f"in {plural(last.get('step'), 'batch')}")
    return [passed, *ahead, *key_figures(summary)]


def _chart(curve: Curve) -> dict[str, Any]:
    """Return the arguments of the part beside a chart: the table behind it."""
    points, held = curve.points, dict(curve.held_out)
    chosen = [points[place] for place in tables.evenly_spaced(len(points), TABLE_ROWS)] if points else []
    rows: list[tuple[int, float | None, float | None]] = [(each.offset, each.mean, None) for each in chosen]
    rows += [(offset, None, accuracy) for offset, accuracy in list(held.items())[-TABLE_ROWS:]]
    return {"rows": sorted(rows, key=lambda row: row[0]), "held_out": bool(held)}


def _tables(follower: RunFollower, summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    run, stream, shifts = follower.log, submapping(summary, "prequential"), submapping(summary, "shifts")
    per_class, support = submapping(stream, "per_class"), submapping(stream, "support")
    domains, samples = submapping(stream, "per_domain"), submapping(stream, "domain_support")
    return {
        "shifts": {
            "shift_rows": tables.shift_rows(run, shifts)[-MAX_LISTED:],
            "judged": bool(shifts.get("true")),
        },
        "arrivals": {"rows": _arrivals(run)},
        "attention": {"rows": tables.attention_rows(run.predictions)},
        "classes": {
            "bars": tables.bars(per_class, support, tables.latest_per_class(run)),
            "class_count": len(per_class),
        },
        "domains": {"bars": tables.bars(domains, samples, {})},
        "requests": {"rows": _requests(follower)},
        "checkpoints": {"rows": list(reversed(follower.checkpoints.rows))[:MAX_LISTED]},
    }


def _arrivals(run: RunLog) -> list[tuple[int | None, list[str]]]:
    """Return the offsets at which classes came for the first time, with their names, the newest first."""
    rows = []
    for event in run.events.get("new_class", [])[-MAX_LISTED:]:
        names = event.get("classes")
        if isinstance(names, list) and names:
            rows.append((as_int(event.get("offset")), [str(each) for each in names]))
    return rows[::-1]


def _requests(follower: RunFollower) -> list[dict[str, Any]]:
    found = newest_requests(follower.folder / LEDGER, MAX_LISTED)
    return [
        {
            "id": each.id,
            "status": each.status,
            "received": each.received,
            "finished": each.finished,
            "reason": each.reason or "",
            "has_receipt": receipt_path(follower.folder, each.id).exists(),
        }
        for each in reversed(found)
    ]


def _still(curve: Curve) -> Curve:
    """Return the curve with points that no longer grow with the run."""
    return Curve(curve.name, tuple(curve.points), curve.share, tuple(curve.held_out), curve.end, curve.marks)


def _moment(seconds: float) -> str:
    """Return the time as ISO 8601 in UTC; the page's script writes it in the reader's own time."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
