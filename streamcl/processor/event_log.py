"""How far a run has come, and the records that it writes to its sink."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import asdict
from typing import Any, ClassVar

from streamcl.errors import SourceError
from streamcl.events import Batch, PredictionRecord
from streamcl.protocols import Sink, State


class Counters:
    """A part of the loop whose state is some of its attributes: numbers, and lists of numbers."""

    COUNTERS: ClassVar[tuple[str, ...]]

    def state_dict(self) -> State:
        """Return the counters by name."""
        return {name: copy(getattr(self, name)) for name in self.COUNTERS}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the counters of another process."""
        for name in self.COUNTERS:
            setattr(self, name, copy(state[name]))


class Progress(Counters):
    """How far a run has come; only the loop changes it.

    offset: records that have passed. step: batches that have passed. committed: the offset of the last
    commit. finished: whether the stream has ended.
    """

    COUNTERS = ("offset", "step", "committed", "finished")

    def __init__(self) -> None:
        self.offset = self.step = self.committed = 0
        self.finished = False

    @property
    def position(self) -> dict[str, int]:
        """Where the run stands, as in every record of the log."""
        return {"step": self.step, "offset": self.offset}

    def advance(self, batch: Batch) -> None:
        """Count a batch that has been learned."""
        self.step += 1
        self.offset = batch.end


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

    def write_prediction(self, made: PredictionRecord, **figures: Any) -> None:
        """Write a prediction, with the step that the run has reached; without what is not computed of it."""
        fields = asdict(made)
        for name in ("stability", "novelty", "work"):
            if fields[name] is None:
                del fields[name]
        self.write("predictions", {"step": self._progress.step, **fields, **figures})

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
        self._last = ""  # the reason of the last rejected record in this process
        self._log, self._limit = log, limit

    def take(self, batch: Batch) -> None:
        """Count and write the rejected records of a batch. Raise SourceError beyond the limit."""
        named = [each for each in batch.rejected if each.id]  # a forgotten record has no id any more
        self.quarantined += len(named)
        self.dropped += len(batch.rejected) - len(named)
        for each in named:
            self._log.write("quarantine", {"offset": each.offset, "id": each.id, "reason": each.reason})
            self._last = f": {each.reason}"
        if self._limit is not None and self.quarantined > self._limit:
            raise SourceError(
                f"{self.quarantined} records were set aside up to offset {batch.end}, "
                f"{self._limit} are allowed; the last{self._last}",
                hint="quarantine.jsonl names them; source.policy.max_quarantined sets the limit",
            )

    def refuse_unused(self, name: str, offset: int) -> None:
        """Raise SourceError where a stream, called `name`, has ended at `offset` without a usable record.

        A wrong path must not leave a run that looks finished.
        """
        if offset == 0:
            raise SourceError(f"{name} has no records", hint="does its path name the right place?")
        if self.quarantined == offset:
            raise SourceError(
                f"{name}: none of its {offset} records could be used; the last{self._last}",
                hint="quarantine.jsonl gives the reason of each",
            )
