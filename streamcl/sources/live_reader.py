"""The interface of a live reader: records as they come, a position to return to, and what it guarantees."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from streamcl.protocols import State
from streamcl.sources.delivery import DeliveryGuarantee

RecordKey: TypeAlias = Any
"""Identifies a record within its reader, as plain JSON: an offset, an entry's id, a file and its time."""


FetchRecords: TypeAlias = Callable[[Sequence[str]], Generator[tuple[str, Any], None, None]]
"""Yields ids and records, of an id each that there is, in any form that `streams.user.records.to_sample`
takes. It is closed before its end where no more is needed."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One record that has come.

    value: a record in any form that `streams.user.records.to_sample` takes, a ForgetRequest, or a BadRecord
        in place of a record that cannot be read: it is quarantined and keeps its place; or a RefusedRequest
        in place of a request that cannot be read: it is logged and passed over. A RejectedRecord keeps its
        place too, with its own id and reason, whatever the policy for bad records is.
    key: see `RecordKey`.
    """

    value: Any
    key: RecordKey


@runtime_checkable
class LiveReader(Protocol):
    """Reads records as they come. One thread uses it at a time, and `open` comes first.

    A record counts as read once its key was passed to `advance`; what `poll` has returned beyond that is read
    again after a restart. So a reader commits nothing at the other end by itself: `acknowledge` is the hint
    that positions up to there are durable here.
    """

    name: str

    @property
    def guarantee(self) -> DeliveryGuarantee:
        """How often each record is learned across crashes."""

    def open(self, position: State | None) -> None:
        """Connect, and continue after `position`; None begins with the first record that there is.

        Raise SourceError where records after the position are gone at the other end (expired, trimmed): the
        message names the gap.
        """

    def poll(self, timeout: float) -> Sequence[Arrival] | None:
        """Return the records that have come, in order, none after `timeout` seconds; None: it has ended."""

    def replay(self, keys: Sequence[RecordKey]) -> Sequence[Arrival]:
        """Return the records with these keys, the next ones after the position, in this order.

        Called after `open`, for batches that were cut before a crash. A record that is gone is a BadRecord.
        """

    def advance(self, keys: Sequence[RecordKey]) -> None:
        """Move the position past records that `poll` or `replay` returned."""

    def position(self) -> State:
        """Return the position as plain data; called after every batch, so it must be cheap."""

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        """Take a position whose checkpoint is durable: commit, acknowledge or trim up to there."""

    @property
    def fetch(self) -> FetchRecords | None:
        """Yields the records with these ids that still exist; None where none can be read again."""

    def lag(self) -> int | None:
        """Return how many records there are after the position; None where that is not known."""

    def close(self) -> None:
        """Disconnect. `open` may follow."""


@runtime_checkable
class ShardableReader(LiveReader, Protocol):
    """A live reader whose records are divided among ranks, such as by the partitions of a broker."""

    def shard(self, rank: int, world: int) -> LiveReader:
        """Return the reader of shard `rank` of `world`, which is opened with positions of all shards.

        A record without an id of its own gets one that no other shard's record has.
        """

    def merge(self, positions: Sequence[State | None]) -> State | None:
        """Return the position that the shards with these positions have reached together."""


@runtime_checkable
class Rejoining(Protocol):
    """A live reader that cannot go back, but can be opened again at what comes now.

    Its `replay` returns a BadRecord for each record that was learned and is lost.
    """

    rejoins: bool
