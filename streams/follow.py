"""Reads a source again each time it ends, so that a run goes on with what has been added to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from streamcl.events import Event, Idle
from streamcl.protocols import Source
from streamcl.sources.wrapper import SourceWrapper

POLL_INTERVAL = 1.0  # seconds between two looks at a source that has ended
MAX_POLLING_SHARE = 0.1  # of the time at most is spent on looking
IDLE_INTERVAL = 0.5  # seconds between two idle moments


class Follow(SourceWrapper):
    """A replayable source without an end: where the wrapped one ends, it is read on from there.

    Args:
        source: the stream; loading its state reads what has been added since.
        clock: returns the time in seconds.
        sleep: waits that many seconds.
    """

    def __init__(
        self,
        source: Source,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(source)
        self._clock, self._sleep = clock, sleep

    def __iter__(self) -> Iterator[Event]:
        while True:
            yield from self._source
            began = self._clock()
            self._source.load_state_dict(self._source.state_dict())
            pause = max(POLL_INTERVAL, (self._clock() - began) / MAX_POLLING_SHARE)
            until = self._clock() + pause
            while (left := until - self._clock()) > 0:
                yield Idle()
                self._sleep(min(IDLE_INTERVAL, left))
