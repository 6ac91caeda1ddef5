"""Keeps events in the order that offsets promise: duplicates are dropped, a gap is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from streamcl.errors import SourceError
from streamcl.events import Batch, Event, ForgetRequest, RejectedRecord, Sample, StreamInfo
from streamcl.protocols import Source, State


def in_order(event: Event, expected: int) -> Event | None:
    """The part of the event at or after the offset `expected`; None where nothing is left of it.

    A batch that came before is a duplicate and is dropped, one that overlaps is cut; a request is never
    dropped, since its key makes it harmless twice. Raises SourceError where records are missing in between.
    """
    if event.offset > expected:
        raise SourceError(
            f"the source went from offset {expected} to {event.offset}",
            hint="records are missing in between; offsets count them without a gap, refused ones too",
        )
    if isinstance(event, ForgetRequest):
        return event if event.offset == expected else replace(event, offset=expected)
    return cut(event, expected, event.end) if event.end > expected else None


def cut(batch: Batch, start: int, end: int) -> Batch:
    """The records of the batch at the offsets [start, end)."""
    if start <= batch.offset and end >= batch.end:
        return batch
    records = list(with_offsets(batch))[max(0, start - batch.offset) : max(0, end - batch.offset)]
    samples = tuple(record for record in records if isinstance(record, Sample))
    refused = tuple(record for record in records if isinstance(record, RejectedRecord))
    return Batch(max(start, batch.offset), samples, refused)


def with_offsets(batch: Batch) -> Iterator[Sample | RejectedRecord]:
    """The batch's records in the order of their offsets: refused ones know theirs, samples fill the rest."""
    refused = {record.offset: record for record in batch.refused}
    samples = iter(batch.samples)
    for offset in range(batch.offset, batch.end):
        record = refused.get(offset) or next(samples, None)
        if record is None:
            raise SourceError(f"a refused record of the batch at {batch.offset} lies outside of it")
        yield record


class OffsetChecked:
    """A source whose events are made to follow one another: see `in_order`. Empty batches are dropped.

    What is not a SourceError already becomes one that names the offset.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._offset = 0

    @property
    def info(self) -> StreamInfo:
        """What the source inside says of itself."""
        return self._source.info

    @property
    def replayable(self) -> bool:
        """What the source inside promises."""
        return self._source.replayable

    def __iter__(self) -> Iterator[Event]:
        for event in self._source:
            kept = in_order(event, self._offset)
            if kept is not None:
                self._offset = kept.end
                yield kept

    def __getattr__(self, name: str) -> Any:
        return passed_on(self, name)

    def state_dict(self) -> State:
        """The position of the source inside, and the next offset."""
        return {"offset": self._offset, "source": self._source.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self._source.load_state_dict(state["source"])
        self._offset = state["offset"]


def passed_on(wrapper: Any, name: str) -> Any:
    """What a wrapper lends from the source inside, where that has it: `fetch`, `close` and the like."""
    inner = wrapper.__dict__.get("_source")
    if name in {"fetch", "close", "interrupt", "rng_state"} and inner is not None:
        return getattr(inner, name)
    raise AttributeError(f"{type(wrapper).__name__} has no attribute {name!r}")
