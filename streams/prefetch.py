"""Reads a source ahead in a thread, and raises an error where the source stalls."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

from streamcl.errors import SourceError, StreamclError, cause_of
from streamcl.events import Batch, Event, Idle, PlacedEvent, StreamInfo
from streamcl.protocols import Source, State
from streamcl.sources.wrapper import SourceWrapper
from streams.bounded_queue import put_until

TICK = 0.05  # seconds between two looks at the clock, or at whether to stop
CLOSE_TIMEOUT = 2.0  # seconds that `close` waits for the thread
Position: TypeAlias = tuple[State, State]
"""The state of a source after an event, and that of the random generators."""
QueueItem: TypeAlias = tuple[Event | None, Position, BaseException | None]
"""An event and the position after it; or no event and the error in its place (None: the end)."""
NOWHERE: Position = ({}, {})


class Prefetcher(SourceWrapper):
    """Reads up to `depth` events ahead in a thread, and raises SourceError when none comes in time.

    The state is the position after the last event handed out, never that of the events read ahead. Errors
    are raised after the events that came before them, and again on every later attempt. Where the source
    stalls, its thread cannot be stopped from outside: it is left behind and ends with the process.

    Args:
        source: the source to read.
        depth: events to read ahead; 0 reads without a thread, and so without a stall timeout.
        stall_timeout: seconds to wait for an event; None waits for ever.
        idle_after: seconds without an event after which an `Idle` is yielded, again and again; None: never.
        clock: returns the time in seconds.
        capture_rng: called in the thread after each event, before the next is read; `rng_state` returns its
            value for the last event handed out. For a source that draws from the process-wide random
            generators, which by then have moved on to the events read ahead.
    """

    def __init__(
        self,
        source: Source,
        depth: int = 2,
        stall_timeout: float | None = 300.0,
        *,
        idle_after: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        capture_rng: Callable[[], State] = dict,
    ) -> None:
        super().__init__(source)
        self._info = source.info  # read before the thread begins
        self._depth, self._stall_timeout, self._idle_after = depth, stall_timeout, idle_after
        self._clock, self._capture_rng = clock, capture_rng
        self._position: Position | None = None
        self._interrupted = False
        self._waiting_since: float | None = None  # since the last event, idle moments aside
        self._worker: _Worker | None = None
        self._peeked: deque[QueueItem] = deque()  # looked at, and not yet handed out

    @property
    def info(self) -> StreamInfo:
        """The wrapped source's info, as it was before reading began."""
        return self._info

    def __iter__(self) -> Iterator[Event]:
        if self._depth == 0:
            yield from self._source
            return
        while True:
            event, position, error = self._peeked.popleft() if self._peeked else self._take()
            if error is not None:
                raise error
            if event is None:
                return
            self._position = position
            yield event

    def peek(self, records: int) -> list[Event]:
        """Return the next events, of at least `records` records or to the end; the position stays.

        Wait for them as iterating does, but not for an idle source. Where the source stalls or fails the
        events before that are returned, and the error is raised when its turn comes. Empty with `depth` 0.
        """
        found: list[Event] = []
        for event in self._peek_events() if self._depth else ():
            found.append(event)
            if sum(len(each) + len(each.rejected) for each in found if isinstance(each, Batch)) >= records:
                break
        return found

    def _peek_events(self) -> Iterator[Event]:
        yield from [event for event, _, _ in self._peeked if event is not None]
        with suppress(SourceError):
            while isinstance((item := self._take())[0], PlacedEvent):
                self._peeked.append(item)
                yield item[0]

    def poll(self, timeout: float) -> QueueItem | None:
        """Return the next item, with the position after it, for a reader in front of it; None: none in time.

        It moves no position; an error is raised by the caller.
        """
        if self._worker is None:
            self._position = self._current()
            self._worker = _Worker(self._source, self._depth, self._capture_rng)
            weakref.finalize(self, self._worker.stop.set)
        return self._worker.take(timeout)

    def state_dict(self) -> State:
        """Return the position after the last event handed out."""
        return self._current()[0]

    def rng_state(self) -> State:
        """Return `capture_rng()` after the last event handed out; before the first, its value now."""
        return self._current()[1]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from that position; events read ahead are dropped."""
        if self._worker is not None and not self._worker.join(self._stall_timeout or 10.0):
            raise SourceError(f"{self._info.name} does not stop: its thread is still reading")
        self._worker = self._position = None
        self._peeked.clear()
        self._source.load_state_dict(state)

    def close(self) -> None:
        """End the thread. Iterating a replayable source again continues after the last event handed out.

        A thread that hangs in the source is left behind after CLOSE_TIMEOUT seconds.
        """
        if self._worker is not None:
            position = self.state_dict()
            if not self._worker.join(CLOSE_TIMEOUT):
                return
            if self._source.replayable:
                self._worker = None
                self._peeked.clear()
                self._source.load_state_dict(position)
        super().close()

    def interrupt(self) -> None:
        """End iteration, also one that is waiting for an event. Safe in a signal handler."""
        self._interrupted = True

    def _current(self) -> Position:
        return self._position or (self._source.state_dict(), self._capture_rng())

    def _take(self) -> QueueItem:
        """Return the next item from the thread; an idle moment, or an error, where it is late."""
        began = self._clock()
        if self._waiting_since is None:
            self._waiting_since = began
        while True:
            item = self.poll(TICK)
            if item is not None:
                if not isinstance(item[0], Idle):
                    self._waiting_since = None
                return item
            if self._interrupted:
                return None, NOWHERE, None
            now = self._clock()
            if self._stall_timeout is not None and now - self._waiting_since >= self._stall_timeout:
                raise SourceError(
                    f"{self._info.name} stalled: no event within {self._stall_timeout:g} seconds",
                    hint="raise stall_timeout where the source may be that slow",
                )
            if self._idle_after is not None and now - began >= self._idle_after:
                return Idle(), self._current(), None


class _Worker:
    """The thread that reads, and the bounded queue that it fills."""

    def __init__(self, source: Source, depth: int, capture_rng: Callable[[], State]) -> None:
        self._items: queue.Queue[QueueItem] = queue.Queue(depth)
        self._last: QueueItem | None = None
        self._source, self._capture_rng = source, capture_rng
        self.stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="streamcl-read-ahead", daemon=True)
        self._thread.start()

    def take(self, timeout: float) -> QueueItem | None:
        """Return the next item, or None where there is none yet. The last one is returned again and again."""
        if self._last is None:
            try:
                item = self._items.get(timeout=timeout)
            except queue.Empty:
                return None
            if item[0] is not None:
                return item
            self._last = item
        return self._last

    def join(self, timeout: float) -> bool:
        """Stop the thread; return whether it ended within `timeout` seconds."""
        self.stop.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _read(self) -> None:
        """Put every event with the position after it into the queue, then the end or the error."""
        error: BaseException | None = None
        offset = 0
        try:
            for event in self._source:
                if isinstance(event, PlacedEvent):
                    offset = event.end
                if not self._put((event, (self._source.state_dict(), self._capture_rng()), None)):
                    return
        except StreamclError as raised:
            error = raised
        except (Exception, SystemExit) as raised:  # a source may raise anything; the reader must raise it
            error = SourceError(f"the source failed after offset {offset}: {cause_of(raised)}")
            error.__cause__ = raised
        except BaseException as raised:  # as above: it would end this thread in silence
            error = raised
        self._put((None, NOWHERE, error))

    def _put(self, item: QueueItem) -> bool:
        """Wait for room in the queue; return False where the thread must stop instead."""
        return put_until(self._items, item, self.stop)
