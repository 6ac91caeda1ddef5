"""Turns a run directory, whole, interrupted or damaged, into what the report shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamcl.report.series import Lines, PredictionSeries, Series, number, whole_number

LIMIT_EVENTS = 5000
"""Events kept of each kind; a stream that shifts at every step has no use for more on paper."""


@dataclass(slots=True)
class Steps:
    """What the step records say: curves over the stream and the last and largest values."""

    accuracy: Series = field(default_factory=Series)
    loss: Series = field(default_factory=Series)
    last: dict[str, Any] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    step: int = -1

    def add(self, record: Mapping[str, Any]) -> None:
        """Take one step record. A step that has passed is a repeat after a crash, and left out."""
        step, offset = whole_number(record.get("step")), whole_number(record.get("offset"))
        if step is None or offset is None or step <= self.step:
            return
        self.step = step
        self.last = dict(record)
        for series, name in ((self.accuracy, "window_accuracy"), (self.loss, "loss")):
            if (value := number(record.get(name))) is not None:
                series.add(offset, value)
        memory = number(record.get("memory_mb"))
        if memory is not None:
            self.peak_memory_mb = max(memory, self.peak_memory_mb or 0.0)


@dataclass(slots=True)
class RunLog:
    """A run as its directory tells it. `notes` are sentences about what is missing or unreadable."""

    name: str
    summary: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    steps: Steps = field(default_factory=Steps)
    holdout: dict[int, dict[str, Any]] = field(default_factory=dict)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    guesses: PredictionSeries = field(default_factory=PredictionSeries)
    quarantined: int = 0
    gallery: list[dict[str, Any]] = field(default_factory=list)
    config: str = ""
    folder: Path | None = None
    notes: list[str] = field(default_factory=list)

    def offsets(self, kind: str) -> list[int]:
        """Where the events of one kind lie, in order."""
        found = (whole_number(event.get("offset")) for event in self.events.get(kind, []))
        return sorted({offset for offset in found if offset is not None})

    @property
    def end(self) -> int:
        """How many records had passed when the last one was written."""
        return max(self.guesses.end, whole_number(self.steps.last.get("offset")) or 0, *self.holdout, 0)


def read_run(folder: Path) -> RunLog:
    """Read what is there; of what is not there `notes` tells. Raises OSError where files cannot be opened."""
    run = RunLog(folder.resolve().name, folder=folder)
    run.summary = _read_object(folder / "summary.json", run.notes)
    _read_lines(folder, run)
    run.finished = bool(run.summary) or "end" in run.events
    run.gallery = _read_gallery(folder / "samples")
    config = folder / "config.yaml"
    run.config = config.read_text("utf-8", errors="replace") if config.is_file() else ""
    if not run.finished:
        run.notes.insert(0, _unfinished(run))
    return run


def _unfinished(run: RunLog) -> str:
    if not run.end:
        return "Nothing has been recorded in this run directory yet."
    return (
        "This run has no summary: it was interrupted or is still going. The figures below were computed "
        f"from what it had written, up to offset {run.end:,}."
    )


def _read_lines(folder: Path, run: RunLog) -> None:
    files = {
        topic: Lines(folder / f"{topic}.jsonl")
        for topic in ("metrics", "events", "predictions", "quarantine")
    }
    for record in files["metrics"]:
        offset = whole_number(record.get("offset"))
        if record.get("kind") == "holdout" and offset is not None:
            run.holdout[offset] = record
        elif record.get("kind") == "step":
            run.steps.add(record)
    for record in files["events"]:
        kept = run.events.setdefault(str(record.get("kind")), [])
        if len(kept) < LIMIT_EVENTS:
            kept.append(record)
    window = whole_number(_inner(run.summary, "prequential").get("window"))
    run.guesses = PredictionSeries(window=window or 1000)
    for record in files["predictions"]:
        run.guesses.add(record)
    run.quarantined = sum(1 for _ in files["quarantine"])
    for topic, lines in files.items():
        if not lines.path.is_file() and topic != "quarantine":
            run.notes.append(f"{topic}.jsonl is missing; what it would show is left out.")
        if lines.unreadable:
            run.notes.append(f"{topic}.jsonl has {lines.unreadable} unreadable line(s), which are left out.")


def _inner(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping under `key`, or an empty one where there is none."""
    value = mapping.get(key)
    return value if isinstance(value, Mapping) else {}


def _read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    notes.append(f"{path.name} cannot be read; the figures were computed from the other files.")
    return {}


def _read_gallery(folder: Path) -> list[dict[str, Any]]:
    """The index's entries whose thumbnails are there, each with its PNG under "png"."""
    try:
        found = json.loads((folder / "index.json").read_bytes())
    except (OSError, ValueError):
        return []
    entries = [dict(entry) for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    for entry in entries:
        path = folder / Path(str(entry.get("file"))).name  # its last part only: never outside the folder
        small = path.is_file() and path.stat().st_size < 200_000
        entry["png"] = path.read_bytes() if small else b""
    return [entry for entry in entries if entry["png"].startswith(b"\x89PNG")]
