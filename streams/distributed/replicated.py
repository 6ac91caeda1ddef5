"""One stream that every rank reads whole, each decoding the slice of every batch that is its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from streamcl.errors import SourceError
from streamcl.events import Batch, Event, RemoteSample, Sample, StreamInfo
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


class Replicated:
    """Gives each rank the same batches, with the pixels of the records at the offsets rank modulo world.

    The others' records are `RemoteSample`. Which batches there are is that of one process, so a run on
    several ranks can be continued by any number of them: the state is that of the source inside. Before each
    event the ranks tell one another what they could not decode. Raises SourceError where they do not read the
    same records.
    """

    def __init__(self, source: Source, group: Collective, on_stop: Callable[[], None]) -> None:
        self._source = source
        self._group = group
        self._exchange = MessageExchange(group, on_stop)
        self._position: State | None = None  # after the last event handed out

    @property
    def info(self) -> StreamInfo:
        """What the source inside says of itself."""
        return self._source.info

    @property
    def replayable(self) -> bool:
        """What the source inside promises."""
        return self._source.replayable

    def __iter__(self) -> Iterator[Event]:
        events = iter(self._source)
        self._position = self._here()
        while True:
            event = next_event(events)
            words = self._exchange.messages(_digested(to_message(event, self._own), event))
            if words is None:
                return
            self._compare(words)
            if event is None:
                return
            assert not isinstance(event, Exception)  # it has been raised
            self._position = self._source.state_dict()
            yield self._completed(event, words) if isinstance(event, Batch) else event

    def __getattr__(self, name: str) -> Any:
        return passed_on(self, name)

    def interrupt(self) -> None:
        """Have all ranks stop before their next event, and wait for none. Safe in a signal handler."""
        self._exchange.interrupt(self._source)

    def state_dict(self) -> State:
        """The position after the last event handed out."""
        return self._here()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position that any number of ranks left."""
        self._source.load_state_dict(state)
        self._position = None

    def _here(self) -> State:
        return self._source.state_dict() if self._position is None else self._position

    def _own(self, batch: Batch) -> Sequence[Record]:
        """Only the refused ones: of the others every rank knows all but the pixels."""
        return [refused for refused in batch.refused if self._holder(refused.offset) == self._group.rank]

    def _holder(self, offset: int) -> int:
        return offset % self._group.world_size

    def _compare(self, words: Sequence[RankMessage]) -> None:
        first = words[0]
        for rank, word in enumerate(words):
            if (word.kind, word.offset, word.position) != (first.kind, first.offset, first.position):
                raise SourceError(
                    f"rank 0 reads another stream than rank {rank}: {_told(first)} and {_told(word)}",
                    hint="every rank must be given the same records in the same order; "
                    "a source that each reads a part of needs a shard(rank, world)",
                )

    def _completed(self, batch: Batch, words: Sequence[RankMessage]) -> Batch:
        refused = {record.offset: record for word in words for record in word.content}
        records = []
        for offset, record in enumerate(with_offsets(batch), start=batch.offset):
            holder = self._holder(offset)
            if offset in refused:
                records.append(refused[offset])
            elif not isinstance(record, Sample):
                raise SourceError(f"rank {holder} could read the record at {offset}, this rank could not")
            else:
                records.append(record if holder == self._group.rank else RemoteSample.of(record, holder))
        return batch_from_messages(batch.offset, records)


def _digested(word: RankMessage, event: Any) -> RankMessage:
    """With a digest of the ids, which must be the same on every rank, in the place of a position."""
    if not isinstance(event, Batch):
        return RankMessage(word.kind, word.offset, word.content, event.id if word.kind == "request" else None)
    ids = "\0".join(record.id for record in with_offsets(event)).encode(errors="surrogatepass")
    return RankMessage(word.kind, word.offset, word.content, (event.end, hashlib.sha256(ids).hexdigest()))


def _told(word: RankMessage) -> str:
    return "no more" if word.kind == "end" else f"the {word.kind} at offset {word.offset}"
