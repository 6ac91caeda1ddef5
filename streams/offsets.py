"""Follows the offsets of a stream: drops duplicates, raises an error at a gap, ends at a limit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from streamcl.errors import SourceError
from streamcl.events import Batch, Event, ForgetRequest, PlacedEvent, RejectedRecord, Sample, StreamInfo
from streamcl.protocols import Source, State
from streamcl.requests.label import Label
from streamcl.sources.wrapper import SourceWrapper

Record: TypeAlias = Sample | RejectedRecord


def batch_of(offset: int, records: Iterable[Record | Label]) -> Batch:
    """Return the batch of these records, and of the labels among them, that begins at `offset`.

    >>> batch_of(4, [RejectedRecord(4, "torn.png", "not an image"), Label("cat.png", "cat")]).end
    5
    """
    records = tuple(records)
    samples = tuple(record for record in records if isinstance(record, Sample))
    rejected = tuple(record for record in records if isinstance(record, RejectedRecord))
    return Batch(offset, samples, rejected, labels=tuple(each for each in records if isinstance(each, Label)))


def is_full(units: Collection[Record | Label], size: int) -> bool:
    """Return whether there are `size` records among the units, or `size` labels."""
    labels = sum(isinstance(each, Label) for each in units) if len(units) >= size else 0
    return len(units) >= size and max(labels, len(units) - labels) >= size


def in_order(event: PlacedEvent, expected: int) -> PlacedEvent | None:
    """Return the part of the event at or after the offset `expected`, or None where nothing is left.

    A batch that was seen before is a duplicate and is dropped, one that overlaps is cut; requests and labels
    are never dropped, since their repetition is harmless. Raise SourceError where records are missing.

    >>> seen = batch_of(0, [RejectedRecord(k, f"{k}.png", "not an image") for k in range(4)])
    >>> in_order(seen, expected=4), in_order(seen, expected=3).offset
    (None, 3)
    """
    if event.offset > expected:
        raise SourceError(
            f"the source went from offset {expected} to {event.offset}",
            hint="records are missing in between; offsets count every record, rejected ones too",
        )
    if isinstance(event, ForgetRequest):
        return event if event.offset == expected else event.model_copy(update={"offset": expected})
    if event.end > expected:
        return cut(event, expected, event.end)
    return Batch(expected, (), labels=event.labels, time=event.time) if event.labels else None


def cut(batch: Batch, start: int, end: int) -> Batch:
    """Return the records of the batch at the offsets [start, end), and its labels.

    Labels that name records of another part of the batch stay with that part; the first part has the others.
    """
    if start <= batch.offset and end >= batch.end:
        return batch
    first, last = max(0, start - batch.offset), max(0, end - batch.offset)
    records = list(records_of(batch))
    part = {record.id for record in records[first:last]}
    others = {record.id for record in records} - part
    labels = (each for each in batch.labels if each.id in part or (not first and each.id not in others))
    taken = batch_of(max(start, batch.offset), [*records[first:last], *labels])
    return replace(taken, predict_only=batch.predict_only, time=batch.time)


def records_of(batch: Batch) -> Iterator[Record]:
    """Yield the batch's records by ascending offset: rejected ones have theirs, samples fill the rest."""
    rejected = {record.offset: record for record in batch.rejected}
    samples = iter(batch.samples)
    for offset in range(batch.offset, batch.end):
        record = rejected.get(offset) or next(samples, None)
        if record is None:
            raise SourceError(f"a rejected record of the batch at {batch.offset} lies outside of it")
        yield record


class OffsetChecked(SourceWrapper):
    """A source whose events follow one another (see `in_order`); batches of nothing are dropped."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._offset = 0

    def __iter__(self) -> Iterator[Event]:
        for event in self._source:
            if not isinstance(event, PlacedEvent):
                yield event
            elif (checked := in_order(event, self._offset)) is not None:
                self._offset = checked.end
                yield checked

    def state_dict(self) -> State:
        """Return the wrapped source's position and the next offset."""
        return {"offset": self._offset, "source": self._source.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self._source.load_state_dict(state["source"])
        self._offset = state["offset"]

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        """Pass on the wrapped source's part of a position."""
        super().acknowledge(position["source"])


class Take(SourceWrapper):
    """The first `samples` records of a source with dense offsets; the batch that crosses the limit is split.

    The state is one from which more can be read under a higher limit: no record of a split batch is lost.
    Requests that come right at the limit are not handed out.
    """

    def __init__(self, source: Source, samples: int) -> None:
        super().__init__(source)
        self._limit = samples
        self._offset = 0
        self._before: State | None = None  # the position before a batch that was split

    @property
    def info(self) -> StreamInfo:
        """The wrapped source's info, cut at the limit."""
        info = self._source.info
        return replace(
            info,
            length=None if info.length is None else min(info.length, self._limit),
            shifts=tuple(shift for shift in info.shifts if shift < self._limit),
            holdout=tuple(
                replace(part, end_offset=None) if (part.end_offset or 0) > self._limit else part
                for part in info.holdout
            ),
        )

    def __iter__(self) -> Iterator[Event]:
        events = iter(self._source)
        while self._offset < self._limit:
            before = self._source.state_dict()
            event = next(events, None)
            if event is None:
                return
            if isinstance(event, Batch):
                if event.end > self._limit:
                    self._before = before
                event = cut(event, self._offset, self._limit)
            if isinstance(event, PlacedEvent):
                self._offset = event.end
            yield event

    def state_dict(self) -> State:
        """Return the next offset, and a position of the wrapped source at or before it."""
        state = self._source.state_dict() if self._before is None else self._before
        return {"offset": self._offset, "source": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned, under this or another limit."""
        self._source.load_state_dict(state["source"])
        self._offset = state["offset"]
        self._before = None

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        """Pass on the wrapped source's part of a position."""
        super().acknowledge(position["source"])
