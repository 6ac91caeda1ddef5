"""Replaying a run's stream from a checkpoint without some records, as far as one request needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from streamcl.events import Batch
from streamcl.forgetting.ledger.tombstones import drop_samples


class StreamReplay(Protocol):
    """Replays a run's stream from one of its checkpoints (see streamcl.runs.checkpoint_replay)."""

    @property
    def unavailable(self) -> str | None:
        """Why this run can replay nothing; None where it can."""

    @property
    def limit(self) -> int:
        """The number of records that are replayed at most."""

    def checkpoint_before(self, offset: int) -> int | None:
        """Return the offset of the newest checkpoint that no record at or after `offset` has reached."""

    def run(self, start: int, end: int, filter_batch: Callable[[Batch], Batch]) -> None:
        """Make the learner the one of the checkpoint at `start`, and learn the records up to `end` again.

        filter_batch: removes records that are not to be learned. Raise StreamclError where the checkpoint or
        the source fails; the learner is then between the two.
        """

    def finish(self) -> None:
        """Make the run's detector that of the replay, once the erasure has succeeded; else do nothing."""


@dataclass(frozen=True, eq=False)
class RequestReplay:
    """The replay that would erase what one request selects.

    select: returns the offsets of the request's records, one at least, and of those that requests of the same
    erasure have taken; called once, where a replay is considered at all. end: where the run stands.
    drop_erased: removes from a batch what was erased before, and labels of what was not learned.
    """

    stream: StreamReplay
    select: Callable[[], frozenset[int]]
    end: int
    drop_erased: Callable[[Batch], Batch]

    @cached_property
    def dropped(self) -> frozenset[int]:
        """The offsets of the records that are not learned again."""
        return self.select()

    def filter_batch(self, batch: Batch) -> Batch:
        """Return a batch without the records that are not learned again; their places stay."""
        here = self.dropped.intersection(range(batch.offset, batch.end))
        remaining = self.drop_erased(batch)
        return drop_samples(remaining, here) if here else remaining

    @property
    def start(self) -> int | None:
        """The offset of the checkpoint to begin at; None where there is none."""
        return self.stream.checkpoint_before(min(self.dropped))

    @property
    def unsupported_reason(self) -> str | None:
        """Why the request cannot be served by a replay; None where it can."""
        if (reason := self.stream.unavailable) is not None:
            return reason
        if (start := self.start) is None:
            return (
                f"no checkpoint is kept from before record {min(self.dropped)}, the first of the request's "
                "(see checkpoint.keep)"
            )
        if self.end - start > self.stream.limit:
            return (
                f"{self.end - start} records would have to be learned again, more than "
                f"forgetting.max_replay allows ({self.stream.limit})"
            )
        return None
