"""Reads a user's iterable record by record in a thread, so that a slow one does not hold a batch back."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from streamcl.errors import SourceError
from streamcl.events import Batch, Idle, PlacedEvent, Preview
from streamcl.protocols import Source, State, fetch_of
from streamcl.sources.delivery import DeliveryGuarantee, guarantee_of
from streamcl.sources.live_reader import Arrival, FetchRecords, RecordKey
from streams.offsets import batch_of, records_of
from streams.prefetch import Prefetcher
from streams.user.conversion import ConvertedEvent

REPLAY_WAIT = 0.5  # seconds between two looks for records that must come again


class IterableReader:
    """A live reader of a source that yields one record at a time.

    Records have no keys of their own: after a restart the source goes back and yields them in the same order.

    Args:
        source: yields batches of one record, and requests.
        depth: records to read ahead.
    """

    def __init__(self, source: Source, depth: int) -> None:
        self._source, self._depth = source, depth
        self.name = source.info.name
        self._ready = deque[tuple[Arrival, State]]()  # not yet returned, and the position after each
        self._pulled = deque[State]()  # the position after each record that was returned and not yet taken
        self._before, self._skip = source.state_dict(), 0  # of the source, and records to drop there
        self._position: State = {"source": self._before, "skip": 0}
        self._thread = Prefetcher(source, depth, None)

    @property
    def guarantee(self) -> DeliveryGuarantee:
        """The source's own."""
        return guarantee_of(self._source)

    def open(self, position: State | None) -> None:
        """Continue after `position`."""
        if position is not None:
            self._thread.load_state_dict(position["source"])
        self._position = {"source": self._source.state_dict(), "skip": 0} if position is None else position
        self._before, self._skip = self._position["source"], self._position["skip"]
        self._ready.clear()
        self._pulled.clear()

    def poll(self, timeout: float) -> Sequence[Arrival] | None:
        """Return the records that the thread has read; wait for the first of them only."""
        return self._read(self._depth, timeout)

    def replay(self, keys: Sequence[RecordKey]) -> Sequence[Arrival]:
        """Return as many records as there are keys."""
        found = list[Arrival]()
        while len(found) < len(keys):
            arrivals = self._read(len(keys) - len(found), REPLAY_WAIT)
            if arrivals is None:
                raise SourceError(
                    f"{self.name} replays shorter: it ends {len(keys) - len(found)} records early"
                )
            found.extend(arrivals)
        return found

    def advance(self, keys: Sequence[RecordKey]) -> None:
        """Move the position past as many records."""
        for _ in keys:
            self._position = self._pulled.popleft()

    def position(self) -> State:
        """Return the source's position after the last record taken."""
        return self._position

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        """Do nothing: an iterable has no use for it."""

    @property
    def fetch(self) -> FetchRecords | None:
        """Yields what the source's own `fetch` does; None where it has none."""
        return None if fetch_of(self._source) is None else self._fetch

    def _fetch(self, ids: Sequence[str]) -> Generator[tuple[str, Any], None, None]:
        if (fetch := fetch_of(self._source)) is not None:
            with closing(fetch(ids)) as samples:
                yield from ((sample.id, sample) for sample in samples)

    def lag(self) -> None:
        """Nobody knows how much an iterable still has."""

    def close(self) -> None:
        """End the thread."""
        self._thread.close()

    def _read(self, limit: int, timeout: float) -> Sequence[Arrival] | None:
        """Return at most `limit` records, as `poll` does."""
        while len(self._ready) < limit:
            item = self._thread.poll(0.0 if self._ready else timeout)
            if item is None:
                break
            event, (position, _), error = item
            if event is None:
                if self._ready:
                    break  # the end, or the error, comes again with the next poll
                if error is not None:
                    raise error
                return None
            if not isinstance(event, Idle | Preview):
                self._split(event, position)
        count = min(limit, len(self._ready))
        taken = [self._ready.popleft() for _ in range(count)]
        self._pulled.extend(position for _, position in taken)
        return [arrival for arrival, _ in taken]

    def _split(self, event: PlacedEvent, position: State) -> None:
        """Let what is in a user's own batch come one by one: a position may lie between two records."""
        parts: list[PlacedEvent] = [event]
        if isinstance(event, Batch):
            records = enumerate(records_of(event), start=event.offset)
            parts = [batch_of(offset, [record]) for offset, record in records]
            parts += [batch_of(event.end, [label]) for label in event.labels]
        for number, part in enumerate(parts, 1):
            after = {"source": self._before, "skip": number}
            if number == len(parts):
                after = {"source": position, "skip": 0}
            if number > self._skip:
                self._ready.append((Arrival(ConvertedEvent(part), None), after))
        self._before, self._skip = position, 0
