"""One stream that every rank reads whole, each decoding its own slice of every batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from streamcl.errors import SourceError
from streamcl.events import Batch, Event, Sample
from streamcl.protocols import Collective, Source, State
from streamcl.sources.remote_sample import RemoteSample
from streams.distributed.messages import ExchangingSource, RankMessage, next_event, to_message
from streams.offsets import Record, batch_of, records_of


class Replicated(ExchangingSource):
    """Yields the same batches on each rank, with pixels for the offsets that are `rank` modulo world size.

    Other ranks' records are `RemoteSample`. The batches are those of a single process and so is the state:
    a run on several ranks can be continued by any number of them. Before each event the ranks exchange which
    records they could not decode. Raise SourceError where they do not read the same records.
    """

    def __init__(self, source: Source, group: Collective, on_stop: Callable[[], None]) -> None:
        super().__init__(source, group, on_stop)
        self._position: State | None = None  # after the last event handed out

    def __iter__(self) -> Iterator[Event]:
        events = iter(self._source)
        self._position = self.state_dict()
        while True:
            event = next_event(events)
            messages = self._gather(_with_digest(to_message(event, self._own_rejected), event))
            if messages is None:
                return
            _check_agreement(messages)
            if event is None:
                return
            assert not isinstance(event, Exception)  # it has been raised
            self._position = self._source.state_dict()
            yield self._merged(event, messages) if isinstance(event, Batch) else event

    def state_dict(self) -> State:
        """Return the position after the last event handed out."""
        return self._source.state_dict() if self._position is None else self._position

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position that any number of ranks left."""
        self._source.load_state_dict(state)
        self._position = None

    def _own_rejected(self, batch: Batch) -> Sequence[Record]:
        """Return the rejected records of this rank's slice: of others every rank knows all but the pixels."""
        rank, world = self._group.rank, self._group.world_size
        return [rejected for rejected in batch.rejected if rejected.offset % world == rank]

    def _merged(self, batch: Batch, messages: Sequence[RankMessage]) -> Batch:
        """Return the batch without the records that their owners rejected."""
        rejected = {record.offset: record for message in messages for record in message.content}
        records = []
        for offset, record in enumerate(records_of(batch), start=batch.offset):
            owner = offset % self._group.world_size
            if offset in rejected:
                records.append(rejected[offset])
            elif not isinstance(record, Sample):
                raise SourceError(f"rank {owner} could read the record at {offset}, this rank could not")
            else:
                records.append(record if owner == self._group.rank else RemoteSample.of(record, owner))
        return batch_of(batch.offset, records)


def _with_digest(message: RankMessage, event: Any) -> RankMessage:
    """Return the message with a digest of the ids, which must agree among ranks, as its position."""
    if not isinstance(event, Batch):
        return replace(message, position=event.id if message.kind == "request" else None)
    ids = "\0".join(record.id for record in records_of(event)).encode(errors="surrogatepass")
    return replace(message, position=(event.end, hashlib.sha256(ids).hexdigest()))


def _check_agreement(messages: Sequence[RankMessage]) -> None:
    first = messages[0]
    for rank, other in enumerate(messages):
        if (other.kind, other.offset, other.position) != (first.kind, first.offset, first.position):
            raise SourceError(
                f"rank 0 reads another stream than rank {rank}: {_summary(first)} and {_summary(other)}",
                hint="every rank must be given the same records in the same order; "
                "a source that each reads a part of needs a shard(rank, world)",
            )


def _summary(message: RankMessage) -> str:
    return "no more" if message.kind == "end" else f"the {message.kind} at offset {message.offset}"
