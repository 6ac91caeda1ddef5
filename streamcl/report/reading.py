"""Reads a complete, interrupted or damaged run directory for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamcl.report.series import (
    Lines,
    PredictionSeries,
    Series,
    as_float,
    as_int,
    fitting_window,
    submapping,
)
from streamcl.storage.json_lines import json_object

LOG_TOPICS = ("metrics", "events", "predictions", "quarantine")
"""The records of a run, one file `<topic>.jsonl` each."""

LIMIT_EVENTS = 5000
"""Events of each kind that are read, so that memory stays bounded when a stream shifts at every step."""


@dataclass(slots=True)
class StepLog:
    """Step records: curves over the stream, the last record, and the peak memory in MiB."""

    accuracy: Series = field(default_factory=Series)
    loss: Series = field(default_factory=Series)
    speed: Series = field(default_factory=Series)
    flips: Series = field(default_factory=Series)
    last: dict[str, Any] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    step: int = -1

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one step record; one that is not after `step` repeats after a crash and is skipped."""
        step, offset = as_int(record.get("step")), as_int(record.get("offset"))
        if step is None or offset is None or step <= self.step:
            return
        self.step = step
        self.last = dict(record)
        for series, name in (
            (self.accuracy, "window_accuracy"),
            (self.loss, "loss"),
            (self.speed, "images_per_s"),
            (self.flips, "flip_probability"),
        ):
            if (value := as_float(record.get(name))) is not None:
                series.add(offset, value)
        memory = as_float(record.get("memory_mb"))
        if memory is not None:
            self.peak_memory_mb = max(memory, self.peak_memory_mb or 0.0)


@dataclass(slots=True)
class RunLog:
    """The contents of a run directory.

    domains: right and wrong predictions by domain, where there is no summary. holdout_outdated: whether
    samples were erased after the last evaluation. notes: sentences about files
    that are missing or unreadable.
    """

    name: str
    summary: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    steps: StepLog = field(default_factory=StepLog)
    holdout: dict[int, dict[str, Any]] = field(default_factory=dict)
    holdout_outdated: bool = False
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    predictions: PredictionSeries = field(default_factory=PredictionSeries)
    quarantined: int = 0
    domains: dict[str, tuple[int, int]] = field(default_factory=dict)
    thumbnails: list[dict[str, Any]] = field(default_factory=list)
    config: str = ""
    folder: Path | None = None
    notes: list[str] = field(default_factory=list)

    def add(self, topic: str, record: Mapping[str, Any]) -> None:
        """Take in one record of a topic: metrics, events, predictions or quarantine."""
        if topic == "metrics":
            offset = as_int(record.get("offset"))
            if record.get("kind") == "holdout" and offset is not None:
                self.holdout[offset], self.holdout_outdated = dict(record), False
            elif record.get("kind") == "holdout_outdated":
                self.holdout_outdated = True
            elif record.get("kind") == "step":
                self.steps.add(record)
        elif topic == "events":
            known = self.events.setdefault(str(record.get("kind")), [])
            if len(known) < LIMIT_EVENTS:
                known.append(dict(record))
        elif topic == "predictions":
            self.predictions.add(record)
        else:
            self.quarantined += 1

    def choose_window(self, length: int | None) -> None:
        """Begin to count predictions, in a window that suits the length of the stream, where it is known."""
        widest = as_int(submapping(self.summary, "prequential").get("window")) or 1000
        length = length or as_int(self.steps.last.get("offset")) or 0
        self.predictions = PredictionSeries(window=fitting_window(length, widest))

    def offsets(self, kind: str) -> list[int]:
        """Return the offsets of the events of one kind in ascending order."""
        found = (as_int(event.get("offset")) for event in self.events.get(kind, []))
        return sorted({offset for offset in found if offset is not None})

    @property
    def end(self) -> int:
        """Offset after the last record of the stream that the directory mentions."""
        return max(self.predictions.end, as_int(self.steps.last.get("offset")) or 0, *self.holdout, 0)


def read_run(folder: Path) -> RunLog:
    """Read a run directory; missing files are named in `notes`.

    Raises:
        OSError: files cannot be opened.
    """
    run = RunLog(folder.resolve().name, folder=folder)
    run.summary = summary_file(folder, run.notes)
    _read_lines(folder, run)
    run.finished = bool(run.summary) or "end" in run.events
    run.thumbnails = _read_gallery(folder / "samples")
    config = folder / "config.yaml"
    run.config = config.read_text("utf-8", errors="replace") if config.is_file() else ""
    if not run.finished:
        written = f"The figures below were computed from what it had written, up to offset {run.end:,}."
        stopped = f"This run has no summary: it was interrupted or is still going. {written}"
        nothing = "Nothing has been recorded in this run directory yet."
        run.notes.insert(0, stopped if run.end else nothing)
    return run


def _read_lines(folder: Path, run: RunLog) -> None:
    files = {topic: Lines(folder / f"{topic}.jsonl") for topic in LOG_TOPICS}
    for topic in ("metrics", "events"):
        for record in files[topic]:
            run.add(topic, record)
    run.choose_window(as_int(run.summary.get("samples")))
    for topic in ("predictions", "quarantine"):
        for record in files[topic]:
            run.add(topic, record)
    for topic, lines in files.items():
        if not lines.path.is_file() and topic != "quarantine":
            run.notes.append(f"{topic}.jsonl is missing; figures from it are left out.")
        if lines.unreadable:
            run.notes.append(f"{topic}.jsonl has {lines.unreadable} unreadable line(s), which are left out.")


def summary_file(folder: Path, notes: list[str]) -> dict[str, Any]:
    """Return what summary.json holds; nothing where there is none, or a note where it cannot be read."""
    path = folder / "summary.json"
    if not path.is_file():
        return {}
    found = json_object(path.read_bytes())
    if found is None:
        notes.append(f"{path.name} cannot be read; the figures were computed from the other files.")
    return found or {}


def _read_gallery(folder: Path) -> list[dict[str, Any]]:
    """The entries of the index whose thumbnails exist, each with its PNG under "png"."""
    try:
        found = json.loads((folder / "index.json").read_bytes())
    except (OSError, ValueError):
        return []
    entries = [dict(entry) for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    for entry in entries:
        path = folder / Path(str(entry.get("file"))).name  # its last part only: none outside the folder
        small = path.is_file() and path.stat().st_size < 200_000
        entry["png"] = path.read_bytes() if small else b""
    return [entry for entry in entries if entry["png"].startswith(b"\x89PNG")]
