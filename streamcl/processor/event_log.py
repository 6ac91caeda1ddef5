"""Writes the records of a run to its sink: events, metrics, and the records that the source rejected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from streamcl.errors import SourceError
from streamcl.events import Batch
from streamcl.processor.progress import Counters, Progress
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
        """Write measured figures."""
        self._sink.write("metrics", {"kind": kind, **self._progress.position, **figures})

    def write(self, topic: str, record: Mapping[str, Any]) -> None:
        """Write a record as it is."""
        self._sink.write(topic, record)


class Quarantine(Counters):
    """Counts the records that the source rejected, and writes them to the topic "quarantine".

    quarantined: rejected records. dropped: those that stand where something forgotten came again.
    limit: records in the whole run before SourceError is raised; None sets no limit.
    """

    COUNTERS = ("quarantined", "dropped")

    def __init__(self, log: EventLog, limit: int | None) -> None:
        self.quarantined = self.dropped = 0
        self._log, self._limit = log, limit

    def take(self, batch: Batch) -> None:
        """Count and write the rejected records of a batch. Raise SourceError beyond the limit."""
        named = [each for each in batch.rejected if each.id]  # a forgotten record has no id any more
        self.quarantined += len(named)
        self.dropped += len(batch.rejected) - len(named)
        for each in named:
            self._log.write("quarantine", asdict(each))
        if self._limit is not None and self.quarantined > self._limit:
            last = f": {named[-1].reason}" if named else ""
            raise SourceError(
                f"{self.quarantined} records were set aside up to offset {batch.end}, "
                f"{self._limit} are allowed; the last{last}",
                hint="quarantine.jsonl names them; source.policy.max_quarantined sets the limit",
            )
