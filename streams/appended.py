"""A stream into which records of another origin are put, between two events of its source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from streamcl.events import Batch, Event, ForgetRequest, Preview, StreamInfo
from streamcl.protocols import State
from streamcl.sources.appending import APPENDED, OWN, appended, source_position
from streamcl.sources.wrapper import SourceWrapper
from streams.prefetch import Prefetcher


class Appended(SourceWrapper):
    """A source whose offsets go on after the records that were put in (see `Appendable`).

    Those records are not kept: a position counts them, and reading it again gives the source's own events.
    """

    def __init__(self, source: Prefetcher) -> None:
        super().__init__(source)
        self._read_ahead, self._count = source, 0

    @property
    def info(self) -> StreamInfo:
        """The source's info; its length includes the records that were put in."""
        info = self._source.info
        return info if info.length is None else replace(info, length=info.length + self._count)

    def append(self, count: int) -> None:
        """Leave out the next `count` offsets."""
        self._count += count

    def __iter__(self) -> Iterator[Event]:
        for event in self._source:
            yield _moved(event, self._count)

    def peek(self, records: int) -> list[Event]:
        """Return the next events, of at least `records` records or to the end; the position stays."""
        return [_moved(event, self._count) for event in self._read_ahead.peek(records)]

    def state_dict(self) -> State:
        """Return the source's position, with the number of records put in where there are any."""
        position = self._source.state_dict()
        return {APPENDED: self._count, OWN: position} if self._count else position

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position that `state_dict` returned."""
        self._count = appended(state)
        self._source.load_state_dict(source_position(state))

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        """Pass on the source's part of a position."""
        super().acknowledge(source_position(position))


def _moved(event: Event, count: int) -> Event:
    """Return an event at an offset that is higher by `count`."""
    match event:
        case Batch():
            rejected = tuple(replace(each, offset=each.offset + count) for each in event.rejected)
            return replace(event, offset=event.offset + count, rejected=rejected) if count else event
        case ForgetRequest():
            return event.model_copy(update={"offset": event.offset + count}) if count else event
        case Preview():
            batch = _moved(event.batch, count)
            assert isinstance(batch, Batch)
            return Preview(batch)
    return event
