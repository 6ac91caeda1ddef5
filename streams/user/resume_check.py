"""Checks once, on the first records, that a user's source continues after a restart where it stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from streamcl.errors import SourceError
from streamcl.events import Batch, Event, Sample
from streamcl.protocols import Source, State
from streamcl.sources.wrapper import SourceWrapper
from streams.offsets import Record, records_of

logger = logging.getLogger(__name__)


class ResumeCheck(SourceWrapper):
    """A source of which a second one, resumed after the first event, must read the same second event.

    Checked in the process that begins the stream, and where the first two events are batches. Records must
    have the same ids and labels, and those without an id of their own the same pixels. The state is that of
    the wrapped source.

    Args:
        source: the stream of a user's iterable.
        again: makes it anew, from its beginning.
        required: whether a difference is a SourceError rather than a warning.
        capture_rng, restore_rng: read and set the process-wide random generators, from which the user's
            code may draw; afterwards they are as if nothing had been checked.
    """

    def __init__(
        self,
        source: Source,
        again: Callable[[], Source],
        *,
        required: bool,
        capture_rng: Callable[[], State] = dict,
        restore_rng: Callable[[State], None] = lambda _: None,
    ) -> None:
        super().__init__(source)
        self._again, self._required = again, required
        self._capture_rng, self._restore_rng = capture_rng, restore_rng
        self._at_beginning = True

    def __iter__(self) -> Iterator[Event]:
        events = iter(self._source)
        first = next(events, None)
        if first is None:
            return
        if not (self._at_beginning and isinstance(first, Batch) and self.replayable):
            yield first
            yield from events
            return
        state, generators = self._source.state_dict(), self._capture_rng()
        yield first
        second = next(events, None)
        if isinstance(second, Batch):
            self._check(second, state, generators)
        if second is not None:
            yield second
        yield from events

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position that `state_dict` returned."""
        self._at_beginning = False
        super().load_state_dict(state)

    def _check(self, expected: Batch, state: State, generators: State) -> None:
        now = self._capture_rng()
        self._restore_rng(generators)
        try:
            difference = self._difference(expected, state)
        except SourceError as error:
            difference = f"reading again failed: {error}"
        finally:
            self._restore_rng(now)
        if difference is None:
            return
        place = f"resumed at offset {expected.offset}, {difference}"
        message = f"{self.info.name} does not continue where it stopped: {place}"
        if self._required:
            hint = (
                "its state_dict must hold all that decides what comes next (a shuffle buffer, a random "
                "generator); checkpoint.delivery: best_effort runs it all the same"
            )
            raise SourceError(message, hint=hint)
        logger.warning("%s; if this run is interrupted, records are lost or repeated", message)

    def _difference(self, expected: Batch, state: State) -> str | None:
        """Return how the second event of a resumed source differs from the expected one; None where not."""
        source = self._again()
        source.load_state_dict(state)
        found = next(iter(source), None)
        if not isinstance(found, Batch):
            return "it has no record"
        pairs = zip(records_of(expected), records_of(found), strict=False)
        for offset, (before, after) in enumerate(pairs, expected.offset):
            if before.id != after.id:
                return f"it gives the record {after.id!r:.80} in place of {before.id!r:.80}"
            if not self._equal(before, after, offset):
                return f"it gives another record at offset {offset}"
        return None if expected.end == found.end else f"its batch ends at {found.end}, not {expected.end}"

    def _equal(self, before: Record, after: Record, offset: int) -> bool:
        if not isinstance(before, Sample) or not isinstance(after, Sample):
            return type(before) is type(after)
        own_id = before.id != f"{self.info.name}-{offset}"
        return before.label == after.label and (own_id or np.array_equal(before.image, after.image))
