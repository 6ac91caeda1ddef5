"""A stream of which every rank reads its own shard: files, tar shards, or the partitions of a broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from streamcl.errors import SourceError, StreamclError
from streamcl.events import Event, ForgetRequest, Idle, RejectedRecord, StreamInfo
from streamcl.protocols import Collective, Fetch, Source, State, fetch_of
from streamcl.sources.remote_sample import RemoteSample
from streams.distributed.messages import ExchangingSource, RankMessage, next_event, to_message
from streams.offsets import Record, batch_of, records_of


class Sharded(ExchangingSource):
    """Concatenates the batches of all shards in the order of ranks, and numbers their records anew.

    A shard that has ended, or is idle, adds nothing; the stream ends with the last. A request in one shard
    comes before the batches that the other ranks have read, and requests come one after the other. The state
    holds the position of every shard, so it can be loaded by the same number of ranks only.

    Args:
        shard: the source that this rank reads.
        undivided: the source before it was divided, which fetches samples by their ids.
        group: the ranks.
        on_stop: called on every rank once one has been interrupted.
    """

    def __init__(
        self, shard: Source, undivided: Source, group: Collective, on_stop: Callable[[], None]
    ) -> None:
        super().__init__(shard, group, on_stop)
        self._whole = undivided
        gathered = group.all_gather_object((shard.state_dict(), shard.info.length, shard.replayable))
        positions, lengths, replayable = zip(*gathered, strict=True)
        self._positions, self._replayable = list(positions), all(replayable)
        self._length = None if None in lengths else sum(lengths)
        self._offset = 0

    @property
    def info(self) -> StreamInfo:
        """This shard's info with the length of all shards; where they shift is not known."""
        return replace(self._source.info, name=self._whole.info.name, length=self._length, shifts=())

    @property
    def replayable(self) -> bool:
        """Whether every shard is replayable."""
        return self._replayable

    @property
    def fetch(self) -> Fetch | None:
        """The undivided source's `fetch`, or None."""
        return fetch_of(self._whole)

    def __iter__(self) -> Iterator[Event]:
        events = iter(self._source)
        own: Event | StreamclError | None = None
        used = True  # whether the event that this rank read last has been handed out
        while True:
            if used:
                own = next_event(events)
            message = to_message(own, lambda batch: list(records_of(batch)))
            messages = self._gather(replace(message, position=self._source.state_dict()))
            if messages is None or all(each.kind == "end" for each in messages):
                return
            ranks = self._choose(messages)
            used = message.kind == "idle" or self._group.rank in ranks
            for rank in ranks:
                self._positions[rank] = messages[rank].position
            yield self._event(ranks, messages, own)

    def _choose(self, messages: Sequence[RankMessage]) -> Sequence[int]:
        """Return the ranks whose events are next: one with a request, else all that have batches."""
        requests, batches = (
            [rank for rank, each in enumerate(messages) if each.kind == kind] for kind in ("request", "batch")
        )
        return requests[:1] or batches

    def state_dict(self) -> State:
        """Return the next offset and the position of every shard."""
        return {"offset": self._offset, "shards": list(self._positions)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from that position. Raise SourceError where another number of ranks left it."""
        positions = state.get("shards")
        if not isinstance(positions, list) or len(positions) != self._group.world_size:
            left = len(positions) if isinstance(positions, list) else 1
            raise SourceError(
                f"the saved position is that of {left} shards, there are {self._group.world_size} ranks now",
                hint=f"continue with {left} ranks, or start over with --fresh",
            )
        self._positions = list(positions)
        self._source.load_state_dict(positions[self._group.rank])
        self._offset = state["offset"]

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        """Pass on this rank's part of a position."""
        super().acknowledge(position["shards"][self._group.rank])

    def _event(self, ranks: Sequence[int], messages: Sequence[RankMessage], own: Any) -> Event:
        """Return the event that these ranks bring together; an idle moment where there are none."""
        if not ranks:
            return Idle()
        if messages[ranks[0]].kind == "request":
            request: ForgetRequest = messages[ranks[0]].content
            return request.model_copy(update={"offset": self._offset})
        batch = batch_of(self._offset, self._records(ranks, messages, own))
        self._offset = batch.end
        return batch

    def _records(self, ranks: Sequence[int], messages: Sequence[RankMessage], own: Any) -> list[Record]:
        """Return the records of these ranks with their offsets in the whole stream; own ones keep pixels."""
        records: list[Record] = []
        for rank in ranks:
            is_own = rank == self._group.rank
            for record in records_of(own) if is_own else messages[rank].content:
                if isinstance(record, RejectedRecord):
                    records.append(replace(record, offset=self._offset + len(records)))
                else:
                    records.append(record if is_own else RemoteSample.of(record, rank))
        return records


def shard_size(batch_size: int, group: Collective) -> int:
    """Return how many records of a batch this rank reads: as many as the others, or one more."""
    return max(1, len(range(group.rank, batch_size, group.world_size)))
