"""What a run writes to its sink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from streamcl.events import PredictionRecord, RejectedRecord
from streamcl.processor.ports import RunMetrics, Scores
from streamcl.processor.progress import Progress
from streamcl.protocols import Sink


class EventLog:
    """Writes records to the sink, events and metrics with the step and offset that the run has reached."""

    def __init__(self, sink: Sink, progress: Progress) -> None:
        self._sink = sink
        self._progress = progress

    def log(self, kind: str, reason: str, **figures: Any) -> None:
        """Write an event that has a reason."""
        self.write_event(kind, {"reason": reason, **figures})

    def write_event(self, kind: str, figures: Mapping[str, Any]) -> None:
        """Write an event."""
        self._sink.write("events", {"kind": kind, **self._progress.position, **figures})

    def write_metrics(self, kind: str, figures: Mapping[str, Any]) -> None:
        """Write what was measured."""
        self._sink.write("metrics", {"kind": kind, **self._progress.position, **figures})

    def write_predictions(self, predictions: Sequence[PredictionRecord]) -> None:
        """Write the predictions of the step."""
        for prediction in predictions:
            self._sink.write("predictions", {"step": self._progress.step, **asdict(prediction)})

    def write_refused(self, records: Sequence[RejectedRecord]) -> None:
        """Write which records were set aside, and why."""
        for refused in records:
            record = {"offset": refused.offset, "id": refused.id, "reason": refused.reason}
            self._sink.write("quarantine", record)

    def write_step(self, loss: float | None, scores: Scores, pace: RunMetrics) -> None:
        """Write the figures of the step."""
        figures = {
            "loss": loss,
            "accuracy": scores.accuracy,
            "window_accuracy": scores.window_accuracy,
            "classes": self._progress.classes,
            "segment": self._progress.segment,
            **asdict(pace),
        }
        self.write_metrics("step", figures)
