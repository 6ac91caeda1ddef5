"""Replaying a run's stream from a checkpoint without some records, as far as one request needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from streamcl.events import Batch


class StreamReplay(Protocol):
    """Replays a run's stream from one of its checkpoints (see streamcl.runs.replay)."""

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


@dataclass(frozen=True, slots=True)
class RequestReplay:
    """The replay that would erase what one request selects.

    first: offset of the first record that the request selects. end: where the run stands.
    filter_batch: removes the request's records, and those that were erased before.
    """

    stream: StreamReplay
    first: int
    end: int
    filter_batch: Callable[[Batch], Batch]

    @property
    def start(self) -> int | None:
        """The offset of the checkpoint to begin at; None where there is none."""
        return self.stream.checkpoint_before(self.first)

    @property
    def unsupported_reason(self) -> str | None:
        """Why the request cannot be served by a replay; None where it can."""
        if (reason := self.stream.unavailable) is not None:
            return reason
        if (start := self.start) is None:
            return (
                f"no checkpoint is kept from before record {self.first}, the first of the request's "
                "(see checkpoint.keep)"
            )
        if self.end - start > self.stream.limit:
            return (
                f"{self.end - start} records would have to be learned again, more than "
                f"forgetting.max_replay allows ({self.stream.limit})"
            )
        return None
