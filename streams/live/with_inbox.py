"""A live reader with a second one beside it: the labels that people send about its records."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Any

from streamcl.events import ForgetRequest
from streamcl.protocols import State
from streamcl.requests.label import Label
from streamcl.sources.delivery import DeliveryGuarantee
from streamcl.sources.live_reader import Arrival, FetchRecords, LiveReader, RecordKey, Rejoining
from streamcl.sources.retention import RetainedRecords, retained_of, stored_at
from streams.live.spool.spool_reader import SpoolReader

OWN, INBOX = "inbox/source", "inbox/labels"
"""The keys of the two positions; no reader's own position has them."""


class InboxReader:
    """The records of a reader, and between them what comes into an inbox, in the order of their arrival.

    A key is a pair of 0 or 1 (the inbox) and the reader's own key. A run that began without an inbox goes on
    with one.

    Args:
        reader: brings the records; its end is the end of the stream.
        inbox: brings labels.
    """

    def __init__(self, reader: LiveReader, inbox: SpoolReader) -> None:
        self.name, self.reader, self._inbox = reader.name, reader, inbox
        self._readers: tuple[LiveReader, LiveReader] = (reader, inbox)
        self.stored_at = stored_at(reader)
        if isinstance(reader, Rejoining):
            self.rejoins = reader.rejoins

    @property
    def guarantee(self) -> DeliveryGuarantee:
        """The reader's; what the inbox has taken is learned exactly once."""
        return self.reader.guarantee

    @property
    def retained(self) -> RetainedRecords:
        """The copies that the reader keeps, and the inbox."""
        kept = retained_of(self.reader)
        return self._inbox.retained if kept is None else _BothRetained(kept, self._inbox.retained)

    def open(self, position: State | None) -> None:
        """Open both."""
        self.reader.open(own_position(position))
        try:
            self._inbox.open((position or {}).get(INBOX))
        except BaseException:
            self.reader.close()
            raise

    def poll(self, timeout: float) -> Sequence[Arrival] | None:
        """Return what came into the inbox, then the reader's records; None where that has ended."""
        labels = self._inbox.poll(0.0) or ()
        arrivals = self.reader.poll(0.0 if labels else timeout)
        if arrivals is None and not labels:
            return None
        return [*_keyed(1, labels), *_keyed(0, arrivals or ())]

    def replay(self, keys: Sequence[RecordKey]) -> Sequence[Arrival]:
        """Return the arrivals with these keys."""
        found = list[Arrival]()
        for which, group in groupby(keys, key=lambda key: key[0]):
            found += _keyed(which, self._readers[which].replay([key for _, key in group]))
        return found

    def advance(self, keys: Sequence[RecordKey]) -> None:
        """Move both positions."""
        for number, reader in enumerate(self._readers):
            if own := [key for which, key in keys if which == number]:
                reader.advance(own)

    def position(self) -> State:
        """Return both positions."""
        return {OWN: self.reader.position(), INBOX: self._inbox.position()}

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        """Pass both positions on."""
        self.reader.acknowledge(position.get(OWN, position))
        if INBOX in position:
            self._inbox.acknowledge(position[INBOX])

    @property
    def fetch(self) -> FetchRecords | None:
        """The reader's."""
        return self.reader.fetch

    def lag(self) -> int | None:
        """Return the reader's lag."""
        return self.reader.lag()

    def close(self) -> None:
        """Close both."""
        self._inbox.close()
        self.reader.close()


def own_position(position: State | None) -> State | None:
    """Return the reader's own position, in a position with or without that of an inbox."""
    return None if position is None else position.get(OWN, position)


def _keyed(which: int, arrivals: Sequence[Arrival]) -> list[Arrival]:
    return [Arrival(each.value, [which, each.key]) for each in arrivals]


class _BothRetained:
    """The copies of two readers as those of one."""

    def __init__(self, *both: RetainedRecords) -> None:
        self._both = both

    @property
    def description(self) -> str:
        """For how long either keeps a record."""
        return "; ".join(dict.fromkeys(each.description for each in self._both))

    def count(self, erasures: Sequence[tuple[ForgetRequest, Collection[str]]]) -> int:
        """Return how many records of both `erase` would take out."""
        return sum(each.count(erasures) for each in self._both)

    def erase(self, erasures: Sequence[tuple[ForgetRequest, Collection[str]]]) -> int:
        """Take records out of both."""
        return sum(each.erase(erasures) for each in self._both)

    def erase_returned(self, ids: Collection[str], labels: Collection[Label]) -> None:
        """Take out of both what came again."""
        for each in self._both:
            each.erase_returned(ids, labels)

    def scrub(self, request: ForgetRequest) -> None:
        """Take a request out of both."""
        for each in self._both:
            each.scrub(request)
