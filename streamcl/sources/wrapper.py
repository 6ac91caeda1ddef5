"""The base class of sources that wrap another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from streamcl.events import Event, StreamInfo
from streamcl.protocols import Fetch, Source, State, fetch_of
from streamcl.sources.backlog import lag_of
from streamcl.sources.delivery import Acknowledging, Closable, DeliveryGuarantee, guarantee_of
from streamcl.sources.retention import RetainedRecords, retained_of, stored_at


class SourceWrapper:
    """Base of sources that wrap another: everything is forwarded, and a subclass overrides what it changes.

    `rng_state`, `interrupt` and `close` reach the innermost wrapper, such as streams.prefetch.Prefetcher.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    @property
    def info(self) -> StreamInfo:
        """The wrapped source's info."""
        return self._source.info

    @property
    def replayable(self) -> bool:
        """Whether the wrapped source is replayable."""
        return self._source.replayable

    @property
    def guarantee(self) -> DeliveryGuarantee:
        """The wrapped source's delivery guarantee."""
        return guarantee_of(self._source)

    @property
    def fetch(self) -> Fetch | None:
        """The wrapped source's `fetch`, or None."""
        return fetch_of(self._source)

    @property
    def retained(self) -> RetainedRecords | None:
        """The copies of records that the wrapped source keeps, or None."""
        return retained_of(self._source)

    @property
    def stored_at(self) -> str | None:
        """The place where the wrapped source's records stay, or None."""
        return stored_at(self._source)

    def lag(self) -> int | None:
        """Return how many records wait at the other end of the wrapped source; None where nobody says."""
        return lag_of(self._source)

    def __iter__(self) -> Iterator[Event]:
        return iter(self._source)

    def state_dict(self) -> State:
        """Return the wrapped source's position."""
        return self._source.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position that `state_dict` returned."""
        self._source.load_state_dict(state)

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        """Pass a position on to the wrapped source, where it takes any; a subclass unwraps it."""
        if isinstance(self._source, Acknowledging):
            self._source.acknowledge(position)

    def rng_state(self) -> State:
        """Return the random generators' state after the last event yielded; empty where none is recorded."""
        return self._source.rng_state() if isinstance(self._source, SourceWrapper) else {}

    def interrupt(self) -> None:
        """End the iteration instead of waiting for events. Safe in a signal handler."""
        if isinstance(self._source, SourceWrapper):
            self._source.interrupt()

    def close(self) -> None:
        """Stop reading."""
        if isinstance(self._source, Closable):
            self._source.close()
