"""Forgetting on several ranks: rank 0 decides and erases, and all go on from the state that it then has.

Ledger, lineage and receipts are rank 0's. It broadcasts which samples have a tombstone and, after each
erasure, the state of learner and metrics. So every method of forgetting works on several ranks as on one, and
afterwards all ranks have the same state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from streamcl.distributed.process_group import ProcessGroup
from streamcl.events import Batch, ForgetRequest
from streamcl.forgetting.ledger.tombstones import drop_samples, dropped_from
from streamcl.forgetting.lineage.image_hash import hash_of_image
from streamcl.forgetting.service import ForgettingService
from streamcl.protocols import BatchRecord, ForgettingEvent, State, Stateful
from streamcl.sources.remote_sample import RemoteSample


class ReplicatedForgetting:
    """The forgetting of one rank among several. service: rank 0's; None on every other rank.

    erased_from: the parts that an erasure changes on rank 0, and whose states the others then take over.
    """

    def __init__(
        self, service: ForgettingService | None, erased_from: Sequence[Stateful], group: ProcessGroup
    ) -> None:
        self._service, self._erased_from, self._group = service, tuple(erased_from), group
        self._content_key: bytes = group.broadcast_object(b"" if service is None else service.content_key)

    def submit_from_stream(self, request: ForgetRequest) -> None:
        """Put a request that came with the stream, which all ranks read, into rank 0's ledger."""
        if self._service is not None:
            self._service.submit_from_stream(request)

    def before_batch(self, offset: int) -> Iterator[ForgettingEvent]:
        """Yield what rank 0 does, on every rank; before a commit each has the state of rank 0."""
        if self._service is not None:
            for event in self._service.before_batch(offset):
                erased = event.to_commit and event.figures
                states = [each.state_dict() for each in self._erased_from] if erased else None
                self._group.broadcast_object((event, states))
                yield event
        else:
            while (decided := self._group.broadcast_object(None)) is not None:
                event, states = decided
                for each, state in zip(self._erased_from, states or (), strict=states is not None):
                    each.load_state_dict(state)
                yield event
            return
        self._group.broadcast_object(None)

    def filter(self, batch: Batch) -> Batch:
        """Return the batch without what has a tombstone in rank 0's ledger."""
        filtered = batch if self._service is None else self._service.filter(batch)
        dropped, labels = self._group.broadcast_object((dropped_from(filtered), filtered.labels))
        batch = batch if labels == batch.labels else replace(batch, labels=labels)
        return drop_samples(batch, dropped) if dropped else batch

    def hides_part(self, name: str) -> bool:
        """Return what rank 0 says of a held-out part; all ranks evaluate at the same point, and ask alike."""
        hidden = self._service is not None and self._service.hides_part(name)
        return bool(self._group.broadcast_object(hidden))

    def after_batch(self, record: BatchRecord) -> None:
        """Record the batch on rank 0, with the hashes of the images that the other ranks hold."""
        samples = record.batch.samples
        own = [
            hash_of_image(self._content_key, each.image)
            for each in samples
            if not isinstance(each, RemoteSample)
        ]
        hashes = [iter(each) for each in self._group.all_gather_object(own)]
        if self._service is not None:
            ranks = [each.rank if isinstance(each, RemoteSample) else 0 for each in samples]
            self._service.after_batch(record, [next(hashes[rank]) for rank in ranks])

    def retest(self, offset: int) -> Sequence[ForgettingEvent]:
        """Test on rank 0 whether something erased has come back; that changes no learner."""
        return () if self._service is None else self._service.retest(offset)

    def commit(self) -> None:
        """Make rank 0's lineage and statistics durable."""
        if self._service is not None:
            self._service.commit()

    def state_dict(self) -> State:
        """Return rank 0's state; other ranks have none."""
        return {} if self._service is None else self._service.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the forgetting that returned `state`."""
        if self._service is not None:
            self._service.load_state_dict(state)
