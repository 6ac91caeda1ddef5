"""Puts guards around a source: a stalled one is noticed, a long one is cut, events stay in order."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from streamcl.errors import SourceError, StreamclError
from streamcl.events import Batch, Event, HoldoutPart, StreamInfo
from streamcl.protocols import Source, State
from streams.offsets import OffsetChecked, cut, in_order, passed_on

__all__ = ["OffsetChecked", "Prefetcher", "Take"]

TICK = 0.05  # seconds between two looks at the clock, or at whether to stop
PATIENCE = 2.0  # seconds that a closing source waits for its thread
Position: TypeAlias = tuple[State, State]
"""The state of a source after an event, and what was noted there."""
Item: TypeAlias = tuple[Event | None, Position, BaseException | None]
"""An event and the position after it; or no event and why there is none (None: the end)."""
NOWHERE: Position = ({}, {})


class Prefetcher:
    """Reads up to `depth` events ahead of whoever iterates, in a thread, and notices when none comes.

    The state is the position after the last event handed out, never that of the events read ahead. Errors are
    raised after the events that came before them, and again on every later attempt. Where no event comes
    within `stall_timeout` seconds (None: wait for ever) a SourceError is raised; the thread, which cannot be
    stopped from outside, is left behind and ends with the process. With `depth` 0 there is no thread, and so
    no watchdog.

    note: called where an event has just been read, before the next one is; `noted` gives what it returned
    after the last event handed out. For what the source changes beside its state, such as the process-wide
    random generators, which by then have moved on to the events read ahead.
    """

    def __init__(
        self,
        source: Source,
        depth: int = 2,
        stall_timeout: float | None = 300.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        note: Callable[[], State] = dict,
    ) -> None:
        self._source = source
        self._note = note
        self._info = source.info  # asked before the thread begins to read
        self._depth = depth
        self._stall_timeout = stall_timeout
        self._clock = clock
        self._position: Position | None = None
        self._interrupted = False
        self._worker: _Worker | None = None
        self._ahead: deque[Item] = deque()  # looked at, and not yet handed out

    @property
    def info(self) -> StreamInfo:
        """What the source inside says of itself."""
        return self._info

    @property
    def replayable(self) -> bool:
        """What the source inside promises."""
        return self._source.replayable

    def __iter__(self) -> Iterator[Event]:
        if self._depth == 0:
            yield from self._source
            return
        while True:
            event, position, error = self._next_item()
            if event is None:
                if error is not None:
                    raise error
                return
            self._position = position
            yield event

    def __getattr__(self, name: str) -> Any:
        return passed_on(self, name)

    def peek(self, records: int) -> list[Event]:
        """The next events, of at least so many records or to the end, before they are handed out.

        Waits for them as iterating does; a source that stalls or fails ends them, and is told of when its
        turn comes. Empty with `depth` 0.
        """
        found: list[Event] = []
        for item in self._looked_at() if self._depth else ():
            if item[0] is None or sum(_records(event) for event in found) >= records:
                break
            found.append(item[0])
        return found

    def _looked_at(self) -> Iterator[Item]:
        yield from tuple(self._ahead)
        while True:
            try:
                item = self._taken()
            except SourceError:
                return
            if item[0] is not None:
                self._ahead.append(item)
            yield item

    def state_dict(self) -> State:
        """The position after the last event handed out."""
        return self._here()[0]

    def rng_state(self) -> State:
        """What `note` returned after the last event handed out; what it returns now where there was none."""
        return self._here()[1]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from that position; what was read ahead is dropped."""
        self._stop()
        self._ahead.clear()
        self._source.load_state_dict(state)
        self._position = None

    def close(self) -> None:
        """End the thread. Iterating a replayable source again continues after the last event handed out.

        A thread that hangs in the source is left behind after two seconds.
        """
        if self._worker is None:
            return
        position = self.state_dict()
        if self._worker.stopped(PATIENCE) and self._source.replayable:
            self._worker = None
            self._ahead.clear()
            self._source.load_state_dict(position)

    def interrupt(self) -> None:
        """Let whoever waits for an event wait no longer: iteration ends. Safe in a signal handler."""
        self._interrupted = True

    def _here(self) -> Position:
        return self._position or (self._source.state_dict(), self._note())

    def _next_item(self) -> Item:
        return self._ahead.popleft() if self._ahead else self._taken()

    def _taken(self) -> Item:
        """The next item from the thread."""
        if self._worker is None:
            self._position = self._here()
            self._worker = _Worker(self._source, self._depth, self._note)
            weakref.finalize(self, self._worker.stop.set)
        started = self._clock()
        while True:
            item = self._worker.take(TICK)
            if item is not None:
                return item
            if self._interrupted:
                return None, NOWHERE, None
            waited = self._clock() - started
            if self._stall_timeout is not None and waited >= self._stall_timeout:
                raise SourceError(
                    f"{self._info.name} stalled: no event within {self._stall_timeout:g} seconds",
                    hint="raise stall_timeout where the source may be that slow",
                )

    def _stop(self) -> None:
        if self._worker is not None and not self._worker.stopped(self._stall_timeout or 10.0):
            raise SourceError(f"{self._info.name} does not stop: its thread is still reading")
        self._worker = None


def _records(event: Event) -> int:
    """How many records an event holds; a request holds none."""
    return event.end - event.offset if isinstance(event, Batch) else 0


class _Worker:
    """The thread that reads, and the bounded queue it fills."""

    def __init__(self, source: Source, depth: int, note: Callable[[], State]) -> None:
        self._items: queue.Queue[Item] = queue.Queue(depth)
        self._last: Item | None = None
        self.stop = threading.Event()
        args = (source, note, self._items, self.stop)
        self._thread = threading.Thread(target=_read, args=args, name="streamcl-read-ahead", daemon=True)
        self._thread.start()

    def take(self, timeout: float) -> Item | None:
        """The next item, or None where there is none yet. The last one is given again and again."""
        if self._last is not None:
            return self._last
        try:
            item = self._items.get(timeout=timeout)
        except queue.Empty:
            return None
        if item[0] is None:
            self._last = item
        return item

    def stopped(self, timeout: float) -> bool:
        """Ask the thread to stop and say whether it did so in time."""
        self.stop.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()


def _read(source: Source, note: Callable[[], State], items: queue.Queue[Item], stop: threading.Event) -> None:
    """The thread's work: events and the positions after them, then the end or the error. Nothing is lost."""
    offset = 0
    try:
        for event in source:
            offset = event.end
            if not _put(items, (event, (source.state_dict(), note()), None), stop):
                return
        last: Item = (None, NOWHERE, None)
    except StreamclError as error:
        last = (None, NOWHERE, error)
    except Exception as error:  # a source may raise anything; the reader must hear of it
        failed = SourceError(f"the source failed after offset {offset}: {type(error).__name__}: {error}")
        failed.__cause__ = error
        last = (None, NOWHERE, failed)
    except BaseException as error:  # as above: SystemExit would end this thread in silence
        last = (None, NOWHERE, error)
    _put(items, last, stop)


def _put(items: queue.Queue[Item], item: Item, stop: threading.Event) -> bool:
    """Wait for room; False where the thread must stop instead."""
    while not stop.is_set():
        try:
            items.put(item, timeout=TICK)
        except queue.Full:
            continue
        return True
    return False


class Take:
    """The first `samples` records of a source; the batch that crosses the limit is split.

    The state is one from which more can be read under a higher limit: no record of a split batch is lost.
    Requests that come right at the limit are not handed out.
    """

    def __init__(self, source: Source, samples: int) -> None:
        self._source = source
        self._limit = samples
        self._offset = 0
        self._before: State | None = None  # the position before a batch that was split

    @property
    def info(self) -> StreamInfo:
        """What the source inside says of itself, cut at the limit."""
        info = self._source.info
        return replace(
            info,
            length=None if info.length is None else min(info.length, self._limit),
            shifts=tuple(shift for shift in info.shifts if shift < self._limit),
            holdout=tuple(self._cut_part(part) for part in info.holdout),
        )

    @property
    def replayable(self) -> bool:
        """What the source inside promises."""
        return self._source.replayable

    def __iter__(self) -> Iterator[Event]:
        if self._offset >= self._limit:
            return
        before = self._source.state_dict()
        for event in self._source:
            kept = in_order(event, self._offset)
            if isinstance(kept, Batch) and kept.end > self._limit:
                kept = cut(kept, kept.offset, self._limit)
                self._before = before
            if kept is not None:
                self._offset = kept.end
                yield kept
            if self._offset >= self._limit:
                return
            before = self._source.state_dict()

    def __getattr__(self, name: str) -> Any:
        return passed_on(self, name)

    def state_dict(self) -> State:
        """The next offset, and a position of the source inside at or before it."""
        state = self._source.state_dict() if self._before is None else self._before
        return {"offset": self._offset, "source": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned, under this or another limit."""
        self._source.load_state_dict(state["source"])
        self._offset = state["offset"]
        self._before = None

    def _cut_part(self, part: HoldoutPart) -> HoldoutPart:
        late = part.end_offset is not None and part.end_offset > self._limit
        return replace(part, end_offset=None) if late else part
