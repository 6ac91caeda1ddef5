"""A source made of whatever a user's callable returns: records, batches or events from any iterable."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from streamcl.errors import SourceError
from streamcl.events import Batch, Event, PlacedEvent, Sample, StreamInfo
from streamcl.protocols import Fetch, State
from streamcl.registry import bind_arguments
from streamcl.requests.label import Label
from streams.batch_size import BatchSize
from streams.offsets import Record, batch_of, is_full
from streams.user.conversion import Conversion, Unit
from streams.user.metadata import info_of, label_names
from streams.user.readers import END_OF_ITEMS, is_map_style, lost_by_state
from streams.user.records import RecordPolicy
from streams.user.retrying import RetryingReader, user_code

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """A position between two items at which reading can start again.

    units: records and requests read before it. offset: records read before it. items: items of the user's
    iterable read before it. inner: the user's own state there, as plain data.
    """

    units: int
    offset: int
    items: int
    inner: Any


class IterableSource:
    """The records of a user's iterable, regrouped into batches; events pass between them in order.

    The position is a resume point before the first record not yet handed out, and how many records to drop
    after it. Every exception of the user's code becomes a SourceError that names the offset.

    Args:
        make: returns an iterable of what `to_samples` takes, of streamcl events, or a data set read by index.
            It is called at once, and again for each restart, so it must begin anew each time.
        name: of the stream; records without an id are called "{name}-{offset}".
        batch_size: records in a batch.
        policy: limits, and what is done with bad records.
        columns: keys of the user's mappings, {"image": "img", "label": "fine_label"}.
        deterministic: whether `make` returns the same records each time, which makes any iterable replayable
            by reading it again and dropping the records that were handed out.
        retries: how often an iterator that raises is made anew, where the source is replayable.
        backoff: seconds before the first retry, doubled each time.
        sleep: waits that many seconds.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        *,
        name: str = "stream",
        batch_size: int = 64,
        policy: RecordPolicy | None = None,
        columns: Mapping[str, str] | None = None,
        deterministic: bool = False,
        retries: int = 3,
        backoff: float = 0.5,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._make, self._name, self._batch_size = make, name, BatchSize(batch_size)
        self._policy, self._columns = policy or RecordPolicy(), columns
        self._reading: dict[str, Any] = {"deterministic": deterministic, "retries": retries}
        self._reading |= {"backoff": backoff, "sleep": sleep}
        self._reader = RetryingReader(make, name, **self._reading)
        self._slice = (0, 1)
        with user_code(f"{name} cannot be inspected"):
            self._class_names = label_names(self._reader.made, columns)
            lost = lost_by_state(self._reader.made)
        if lost is not None:
            how = "it is read from its beginning again" if deterministic else "it is read once"
            logger.warning("%s: its own state lacks %s, so %s; shuffle before streaming", name, lost, how)
        self._begin(ResumePoint(0, 0, 0, None), taken=0, offset=0, seen=[])

    @classmethod
    def of(cls, dotted: str, args: Mapping[str, Any] | None = None, **options: Any) -> IterableSource:
        """Return the source made by the callable at "package.module:callable", called with `args`."""
        return cls(bind_arguments(dotted, args or {}), **{"name": dotted.rpartition(":")[2], **options})

    @cached_property
    def info(self) -> StreamInfo:
        """The user's `classes`, `shifts` and `holdout`, and the length where it is certain."""
        with user_code(f"{self._name} cannot be inspected"):
            return info_of(self._reader.made, self._name, self._policy, self._columns)

    @property
    def is_indexed(self) -> bool:
        """Whether the user's object is read by index, so that its position is certain."""
        return is_map_style(self._reader.made)

    @property
    def replayable(self) -> bool:
        """Whether the user's object can be read by index, keeps its own state, or is deterministic."""
        return self._reader.replayable

    def __iter__(self) -> Iterator[Event]:
        self._catch_up()
        while (event := self._next_event()) is not None:
            self._add_resume_point()
            yield event

    def read_singly(self) -> None:
        """From here on yield batches of one record; `streams.live.source.LiveSource` cuts them by time."""
        self._batch_size = BatchSize(1)

    def adapt_batch_size(self) -> None:
        """From here on batches are small while little of the stream has passed; see `BatchSize`."""
        self._batch_size = replace(self._batch_size, adaptive=True)

    def read_slice(self, rank: int, world: int) -> None:
        """From here on decode only records at offsets `rank` modulo `world`; the others have no pixels."""
        self._slice = self._conversion.wanted = (rank, world)

    @property
    def has_shards(self) -> bool:
        """Whether the user's object has a method `shard(rank, world)`."""
        return callable(getattr(self._reader.made, "shard", None))

    def shard(self, rank: int, world: int, batch_size: int) -> IterableSource:
        """Return the source of shard `rank` of `world`.

        Records without an id are called after their shard and their place in it. Raise SourceError where the
        user's object has no `shard(rank, world)`.
        """
        if not self.has_shards:
            raise SourceError(f"{self._name} cannot be read in shards: it has no shard(rank, world)")
        name = f"{self._name}.{rank}"
        return self._copy(lambda: self._make().shard(rank, world), name=name, batch_size=batch_size)

    @property
    def fetch(self) -> Fetch | None:
        """Yields samples by their ids, reading the user's object again; None where it is read once."""
        return self._fetch if self.replayable else None

    def state_dict(self) -> State:
        """Return the position after the last event and digests of the classes seen; no pixels."""
        point = self._resume_points[0]
        return {
            "offset": self._offset,
            "skip": self._taken - point.units,
            "resume_point": {"offset": point.offset, "items": point.items, "inner": point.inner},
            "seen": list(self._conversion.seen),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from that position. Raise SourceError where the user's iterable cannot be replayed."""
        if state["offset"] > 0 and not self.replayable:
            raise SourceError(
                f"{self._name} cannot be resumed at offset {state['offset']}: it is read once",
                hint="give it state_dict and load_state_dict, or __len__ and __getitem__",
            )
        point = ResumePoint(0, **state["resume_point"])
        self._begin(point, taken=state["skip"], offset=state["offset"], seen=list(state["seen"]))

    def _copy(self, make: Callable[[], Any], **changed: Any) -> IterableSource:
        """Return a source of what `make` returns, from the beginning and with the options of this one."""
        options = {"name": self._name, "batch_size": self._batch_size.largest, **self._reading, **changed}
        return IterableSource(make, policy=self._policy, columns=self._columns, **options)

    def _fetch(self, ids: Sequence[str]) -> Generator[Sample, None, None]:
        """Yield the samples with these ids before the position; before the end where nothing was read."""
        wanted, end = set(ids), self._offset or math.inf
        for event in self._copy(self._make, retries=0):
            if isinstance(event, Batch):
                if event.offset >= end:
                    return
                yield from (each for each in event.samples if each.id in wanted)

    def _begin(self, point: ResumePoint, *, taken: int, offset: int, seen: list[str]) -> None:
        self._reader.restart(point.items, point.inner)
        self._resume_points = deque([point])
        self._queue, self._pending = deque[Unit](), list[Record | Label]()
        self._pulled = 0  # units read from the user since the resume point
        self._taken, self._offset, self._behind = taken, offset, taken  # handed out
        self._ended = False
        self._conversion = Conversion(
            self._name, self._policy, self._class_names, self._columns, offset=point.offset, seen=seen
        )
        self._conversion.wanted = self._slice

    def _catch_up(self) -> None:
        """Read again, and drop, the records between the resume point and the position."""
        for _ in range(self._behind):
            if self._next_unit() is None:
                raise SourceError(
                    f"{self._name} ended early when it was read again: before offset {self._offset}"
                )
        if self._behind:
            self._add_resume_point()
        self._behind = 0

    def _next_event(self) -> Event | None:
        """Return a full batch, a short one before the user's own event or the end, or that event."""
        pending = self._pending
        while not is_full(pending, self._batch_size.at(self._offset)):
            unit = self._next_unit()
            if isinstance(unit, PlacedEvent):
                if not pending:
                    self._taken, self._offset = self._taken + 1, unit.end
                    return unit
                self._queue.appendleft(unit)
                break
            if unit is None:
                break
            pending.append(unit)
        if not pending:
            return None
        batch = batch_of(self._offset, pending)
        self._taken, self._offset = self._taken + len(pending), batch.end
        self._pending = []
        return batch

    def _next_unit(self) -> Unit | None:
        while not self._queue and not self._ended:
            item = self._reader.pull(self._conversion.offset)
            if item is END_OF_ITEMS:
                self._ended = True
                self._conversion.warnings.end()
                break
            units = self._conversion.units_of(item)
            self._pulled += len(units)
            self._queue.extend(units)
        return self._queue.popleft() if self._queue else None

    def _add_resume_point(self) -> None:
        """Remember the place reached, once an event, and drop the points that the position has passed.

        Not after the end: there many iterators' states are those of a new beginning.
        """
        points, reader = self._resume_points, self._reader
        if reader.can_mark and not self._ended and points[-1].items < reader.items:
            with user_code(f"{self._name} failed at offset {self._conversion.offset}"):
                inner = reader.mark()
            points.append(ResumePoint(self._pulled, self._conversion.offset, reader.items, inner))
        while len(points) > 1 and points[1].units <= self._taken:
            points.popleft()
