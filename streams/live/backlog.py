"""How many records wait at the other end of a live source, asked now and then."""

from __future__ import annotations

from collections.abc import Callable

LAG_EVERY = 1.0  # seconds between two questions: a broker takes a round trip for each partition


class Backlog:
    """The records after a reader's position: what the reader said last, less what was taken since.

    lag: returns how many there are; None where that is not known.
    clock: returns the time in seconds.
    """

    def __init__(self, lag: Callable[[], int | None], clock: Callable[[], float]) -> None:
        self._lag, self._clock = lag, clock
        self._records: int | None = 0
        self._next = -float("inf")

    def known(self) -> int | None:
        """Return how many there are; None where that is not known."""
        if (now := self._clock()) >= self._next:
            self._records, self._next = self._lag(), now + LAG_EVERY
        return self._records

    def records(self) -> int:
        """Return how many there are; 0 where that is not known."""
        return self.known() or 0

    def take(self, count: int) -> None:
        """Note that the position has moved past so many records."""
        if self._records is not None:
            self._records = max(0, self._records - count)
