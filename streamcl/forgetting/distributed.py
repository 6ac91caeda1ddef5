"""Forgetting on several ranks: the first one erases, and all go on from the state that it then has.

Ledger, lineage and receipts are the first rank's. It tells the others which requests are due, what has a
tombstone, and, once it has erased, the learner and the figures that are left. So every method of forgetting
works on several ranks as it does on one, and afterwards all of them are alike whatever it did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamcl.distributed.process_group import ProcessGroup
from streamcl.events import Batch, ForgetRequest, RemoteSample
from streamcl.forgetting.lineage import content_of
from streamcl.forgetting.service import ForgettingService
from streamcl.forgetting.tombstones import drop_samples, dropped_from
from streamcl.protocols import BatchRecord, State, Stateful


class FirstForgetter:
    """The forgetter of the first rank, which does everything and tells the others."""

    def __init__(
        self, forgetter: ForgettingService, learner: Stateful, scores: Stateful, group: ProcessGroup
    ) -> None:
        self._forgetter, self._learner, self._scores, self._group = forgetter, learner, scores, group
        group.broadcast_object(forgetter.salt)

    def submit(self, request: ForgetRequest) -> None:
        """Take in a request that came with the stream, which all ranks read."""
        self._forgetter.submit(request)

    def pending(self, offset: int) -> Sequence[ForgetRequest]:
        """What is due, by the ledger."""
        due = self._forgetter.pending(offset)
        self._group.broadcast_object([each.id for each in due])
        return due

    def admit(self, batch: Batch) -> Batch:
        """The batch without what has a tombstone in the ledger."""
        kept = self._forgetter.admit(batch)
        self._group.broadcast_object(dropped_from(kept))
        return kept

    def after_batch(self, record: BatchRecord) -> None:
        """Record the batch, with the hashes of the images that the others hold."""
        own = _hashes(record.batch, self._forgetter.salt)
        hashes = [iter(each) for each in self._group.all_gather_object(own)]
        contents = [
            next(hashes[each.rank if isinstance(each, RemoteSample) else 0]) for each in record.batch.samples
        ]
        self._forgetter.after_batch(record, contents)

    def erase(self, request: ForgetRequest, offset: int) -> Mapping[str, Any] | None:
        """Erase here, and give the others what is left."""
        figures = self._forgetter.erase(request, offset)
        left = (self._learner.state_dict(), self._scores.state_dict()) if figures is not None else None
        self._group.broadcast_object((figures, left))
        return figures

    def retest(self, offset: int) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """Test here whether something erased has come back; that changes no learner."""
        return self._forgetter.retest(offset)

    def overdue(self) -> Sequence[Mapping[str, Any]]:
        """What to log of requests whose deadline has passed."""
        return self._forgetter.overdue()

    def seal(self, request: ForgetRequest) -> None:
        """After the commit: leave nothing older behind, and write the receipt."""
        self._forgetter.seal(request)

    def flush(self) -> None:
        """Make what was noted durable."""
        self._forgetter.flush()

    def begin(self) -> None:
        """Start with a stream of which nothing has passed."""
        self._forgetter.begin()

    def truncate(self, offset: int) -> None:
        """Give up what was noted at or after an offset."""
        self._forgetter.truncate(offset)

    def state_dict(self) -> State:
        """That of the forgetter inside."""
        return self._forgetter.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the forgetter that returned `state`."""
        self._forgetter.load_state_dict(state)


class FollowingForgetter:
    """The forgetter of every other rank, which does what it is told and writes nothing."""

    def __init__(self, learner: Stateful, scores: Stateful, group: ProcessGroup) -> None:
        self._learner, self._scores, self._group = learner, scores, group
        self._salt = group.broadcast_object(b"")

    def submit(self, request: ForgetRequest) -> None:
        """The first rank takes it in."""

    def pending(self, offset: int) -> Sequence[Any]:  # noqa: ARG002 - the first rank looks at it
        """The ids of what is due; nothing more is known of the requests here."""
        return self._group.broadcast_object([])

    def admit(self, batch: Batch) -> Batch:
        """The batch without what the first rank's ledger has a tombstone for."""
        dropped = self._group.broadcast_object(())
        return drop_samples(batch, dropped) if dropped else batch

    def after_batch(self, record: BatchRecord) -> None:
        """Give the first rank the hashes of the images held here."""
        self._group.all_gather_object(_hashes(record.batch, self._salt))

    def erase(self, request: Any, offset: int) -> Mapping[str, Any] | None:  # noqa: ARG002
        """Take over what the first rank's erasure has left."""
        figures, left = self._group.broadcast_object((None, None))
        if left is not None:
            learner, scores = left
            self._learner.load_state_dict(learner)
            self._scores.load_state_dict(scores)
        return figures

    def retest(self, offset: int) -> Sequence[tuple[str, Mapping[str, Any]]]:  # noqa: ARG002
        """The first rank tests, and asks for what is to be erased again."""
        return ()

    def overdue(self) -> Sequence[Mapping[str, Any]]:
        """The first rank logs."""
        return ()

    def seal(self, request: Any) -> None:
        """The first rank does that."""

    def flush(self) -> None:
        """There is nothing to write here."""

    def begin(self) -> None:
        """There is nothing noted here."""

    def truncate(self, offset: int) -> None:
        """There is nothing noted here."""

    def state_dict(self) -> State:
        """Nothing: what decides the future is the first rank's."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """There is nothing to load."""


def _hashes(batch: Batch, salt: bytes) -> list[bytes]:
    """Of the images held here, in the order of the batch."""
    return [content_of(salt, each.image) for each in batch.samples if not isinstance(each, RemoteSample)]
