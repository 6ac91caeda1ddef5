"""Ends a source after a number of records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from streamcl.events import Batch, Event, HoldoutPart, StreamInfo
from streamcl.protocols import Source, SourceWrapper, State
from streams.offsets import cut


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
            holdout=tuple(self._cut_part(part) for part in info.holdout),
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

    def _cut_part(self, part: HoldoutPart) -> HoldoutPart:
        late = part.end_offset is not None and part.end_offset > self._limit
        return replace(part, end_offset=None) if late else part
