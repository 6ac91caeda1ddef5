"""A stream of which every rank reads a part of its own: files, shards, or the partitions of a broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from streamcl.errors import SourceError, StreamclError
from streamcl.events import Batch, Event, ForgetRequest, RejectedRecord, RemoteSample, StreamInfo
from streamcl.protocols import Collective, Source, State
from streams.distributed.messages import (
    MessageExchange,
    RankMessage,
    Record,
    batch_from_messages,
    next_event,
    to_message,
)
from streams.offsets import passed_on, with_offsets


class Sharded:
    """Puts the batches of all parts end to end, in the order of ranks, and counts their records anew.

    A part that has come to its end adds nothing; the stream ends with the last. A request in one part comes
    before the records that the others have in hand. The state holds the position of every part, so it is one
    for the same number of ranks only. whole: the undivided source, which can bring samples back by their ids.
    """

    def __init__(self, part: Source, whole: Source, group: Collective, on_stop: Callable[[], None]) -> None:
        self._source = part
        self._whole = whole
        self._group = group
        self._exchange = MessageExchange(group, on_stop)
        told = group.all_gather_object((part.state_dict(), part.info.length, part.replayable))
        self._positions = [position for position, _, _ in told]
        lengths = [length for _, length, _ in told]
        self._length = None if None in lengths else sum(each or 0 for each in lengths)
        self._replayable = all(replayable for _, _, replayable in told)
        self._offset = 0

    @property
    def info(self) -> StreamInfo:
        """What this part says of itself, with the length of all; where parts shift is not known."""
        return replace(self._source.info, name=self._whole.info.name, length=self._length, shifts=())

    @property
    def replayable(self) -> bool:
        """Whether every part is."""
        return self._replayable

    def __iter__(self) -> Iterator[Event]:
        events = iter(self._source)
        held: Event | StreamclError | None = None
        wanting = True
        while True:
            if wanting:
                held = next_event(events)
            word = to_message(held, lambda batch: list(with_offsets(batch)))
            words = self._exchange.messages(replace(word, position=self._source.state_dict()))
            if words is None or all(each.kind == "end" for each in words):
                return
            taken = "request" if any(each.kind == "request" for each in words) else "batch"
            wanting = word.kind == taken
            for rank, each in enumerate(words):
                if each.kind == taken:
                    self._positions[rank] = each.position
            yield from self._events(taken, words, held)

    def __getattr__(self, name: str) -> Any:
        if name == "fetch" and "_whole" in self.__dict__:
            return self._whole.fetch  # type: ignore[attr-defined]
        return passed_on(self, name)

    def interrupt(self) -> None:
        """Have all ranks stop before their next event, and wait for none. Safe in a signal handler."""
        self._exchange.interrupt(self._source)

    def state_dict(self) -> State:
        """The next offset, and where every part is."""
        return {"offset": self._offset, "parts": list(self._positions)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from there. Raises SourceError where another number of ranks left it."""
        parts = state.get("parts")
        if not isinstance(parts, list) or len(parts) != self._group.world_size:
            left = len(parts) if isinstance(parts, list) else 1
            raise SourceError(
                f"the saved position is that of {left} parts; {self._group.world_size} ranks read it now",
                hint=f"go on with {left} ranks, or start over with --fresh",
            )
        self._positions = list(parts)
        self._source.load_state_dict(parts[self._group.rank])
        self._offset = state["offset"]

    def _events(self, taken: str, words: Sequence[RankMessage], held: Any) -> Iterator[Event]:
        if taken == "request":
            requests: list[ForgetRequest] = [each.content for each in words if each.kind == "request"]
            for request in requests:
                yield replace(request, offset=self._offset)
            return
        batch = batch_from_messages(self._offset, self._records(words, held))
        self._offset = batch.end
        yield batch

    def _records(self, words: Sequence[RankMessage], held: Any) -> list[Record]:
        records: list[Record] = []
        for rank, word in enumerate(words):
            if word.kind != "batch":
                continue
            own = isinstance(held, Batch) and rank == self._group.rank
            for record in with_offsets(held) if own else word.content:
                records.append(_at(record, self._offset + len(records), None if own else rank))
        return records


def _at(record: Record, offset: int, holder: int | None) -> Record:
    """The record in its place of the whole stream, where another rank holds it if one is named."""
    if isinstance(record, RejectedRecord):
        return replace(record, offset=offset)
    return record if holder is None else RemoteSample.of(record, holder)


def shard_size(batch_size: int, group: Collective) -> int:
    """How many records of a batch this rank reads: as many as the others, or one more."""
    return max(1, len(range(group.rank, batch_size, group.world_size)))


def can_be_sharded(source: Source) -> bool:
    """Whether the source can be read in parts."""
    return bool(getattr(source, "has_shards", hasattr(source, "shard")))
