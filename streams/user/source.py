"""Makes a source of whatever a user's callable returns: records, batches or events from any iterable."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from streamcl.errors import SourceError, StreamclError
from streamcl.events import Batch, Event, ForgetRequest, Sample, StreamInfo
from streamcl.protocols import Fetch, State
from streamcl.registry import bind_arguments, import_callable
from streams.offsets import Record, batch_of
from streams.user.conversion import Conversion, Unit
from streams.user.metadata import info_of, label_names
from streams.user.readers import ENDED, RecordReader, as_items, length_of, open_reader
from streams.user.records import RecordPolicy

__all__ = ["IterableSource", "import_callable"]


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """A place between two items from which reading can start again.

    units: records and requests read before it; offset: records read before it; items: of the user's iterable.
    inner: the user's own state there, as plain data.
    """

    units: int
    offset: int
    items: int
    inner: Any


class IterableSource:
    """The records of a user's iterable, regrouped into batches of `batch_size`; events pass in their place.

    make: returns an iterable of what `to_samples` takes, of streamcl events, or a data set read by index. It
        is called at once, and again for each restart, so it must begin anew each time.
    columns: keys of the user's mappings, {"image": "img", "label": "fine_label"}.
    deterministic: the user's word that `make` gives the same records each time, which makes any iterable
        replayable by reading again and dropping what was read.
    retries, backoff: how often an iterator that raises is made anew, and the first pause in seconds, doubled
        each time; only where the source is replayable.

    The position is the user's own state as it was before the first record not yet handed out, and how many
    records to drop after it. Every exception of the user's code becomes a SourceError that names the offset.
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
        self._make, self._name, self._batch_size = make, name, batch_size
        self._policy, self._columns = policy or RecordPolicy(), columns
        self._deterministic = deterministic
        self._retries, self._backoff, self._sleep = retries, backoff, sleep
        self._reader: RecordReader | None = None
        self._slice = (0, 1)
        self._made = self._first_made()
        self._fresh = True
        with self._asked():
            self._class_names = label_names(self._made, columns)
        self._begin(ResumePoint(0, 0, 0, None), taken=0, offset=0, seen=[])

    @classmethod
    def of(cls, dotted: str, args: Mapping[str, Any] | None = None, **options: Any) -> IterableSource:
        """The source made by the callable at "package.module:callable", called with `args`."""
        return cls(bind_arguments(dotted, args or {}), **{"name": dotted.rpartition(":")[2], **options})

    @cached_property
    def info(self) -> StreamInfo:
        """What the user's object says of itself: `classes`, `shifts`, `holdout`, and a certain length."""
        with self._asked():
            return info_of(self._made, self._name, self._policy, self._columns)

    @property
    def replayable(self) -> bool:
        """Whether the user's object can be read by index, keeps its own state, or is deterministic."""
        if self._reader is None:
            with self._asked():
                self._reader = self._opened()
        return self._reader.replayable

    def __iter__(self) -> Iterator[Event]:
        self._catch_up()
        while (event := self._next_event()) is not None:
            self._mark()
            yield event

    def read_slice(self, rank: int, world: int) -> None:
        """From here on decode only the records at the offsets `rank` modulo `world`; others lack pixels."""
        self._slice = self._conversion.wanted = (rank, world)

    def shard(self, rank: int, world: int, batch_size: int) -> IterableSource:
        """The source of part `rank` of `world`, where the user's object has a `shard(rank, world)`.

        Records without an id are called after their part and their place in it. Raises SourceError where
        there is no such method.
        """
        if not callable(getattr(self._made, "shard", None)):
            raise SourceError(
                f"{self._name} cannot be read in parts: it has no shard(rank, world)",
                hint="ranks: {read: slices} lets every rank read the whole stream and decode its slice",
            )
        return IterableSource(
            lambda: self._make().shard(rank, world),
            name=f"{self._name}.{rank}",
            batch_size=batch_size,
            policy=self._policy,
            columns=self._columns,
            deterministic=self._deterministic,
            retries=self._retries,
            backoff=self._backoff,
        )

    @property
    def has_shards(self) -> bool:
        """Whether the user's object can be read in parts."""
        return callable(getattr(self._made, "shard", None))

    def state_dict(self) -> State:
        """The position after the last event, digests of the classes seen, and no pixels."""
        mark = self._marks[0]
        return {
            "offset": self._offset,
            "skip": self._taken - mark.units,
            "mark": {"offset": mark.offset, "items": mark.items, "inner": mark.inner},
            "seen": list(self._conversion.seen),
        }

    @property
    def fetch(self) -> Fetch | None:
        """Returns samples by their ids, reading the user's object again; None where it is read once."""
        return self._fetch if self.replayable else None

    def _fetch(self, ids: Sequence[str]) -> Mapping[str, Sample]:
        wanted, found = set(ids), dict[str, Sample]()
        again = IterableSource(
            self._make,
            name=self._name,
            batch_size=self._batch_size,
            policy=self._policy,
            columns=self._columns,
            deterministic=self._deterministic,
            retries=0,
        )
        for event in again:
            for sample in event.samples if isinstance(event, Batch) else ():
                if sample.id in wanted:
                    found[sample.id] = sample
            if len(found) == len(wanted):
                break
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from that position. Raises SourceError where the user's iterable cannot be replayed."""
        if state["offset"] > 0 and not self.replayable:
            raise SourceError(
                f"{self._name} cannot be resumed at offset {state['offset']}: it is read once",
                hint="give it state_dict and load_state_dict, or __len__ and __getitem__",
            )
        mark = ResumePoint(0, state["mark"]["offset"], state["mark"]["items"], state["mark"]["inner"])
        self._begin(mark, taken=state["skip"], offset=state["offset"], seen=list(state["seen"]))

    def _begin(self, mark: ResumePoint, *, taken: int, offset: int, seen: list[str]) -> None:
        self._reader = None
        self._marks = deque([mark])
        self._queue: deque[Unit] = deque()
        self._pending: list[Record] = []
        self._items, self._pulled = mark.items, 0  # read from the user
        self._taken, self._offset, self._behind = taken, offset, taken  # handed out
        self._conversion = Conversion(
            self._name,
            self._policy,
            self._class_names,
            self._columns,
            offset=mark.offset,
            seen=seen,
            wanted=self._slice,
        )
        self._ended = False

    def _catch_up(self) -> None:
        """Read again, and drop, the records between the mark and the position."""
        if not self._behind:
            return
        for _ in range(self._behind):
            if self._next_unit() is None:
                raise SourceError(f"{self._name} replays shorter: it ends before offset {self._offset}")
        self._behind = 0
        self._mark()

    def _next_event(self) -> Event | None:
        """A full batch, or a short one where the user's own event or the end comes first, or that event."""
        while len(self._pending) < self._batch_size:
            unit = self._next_unit()
            if isinstance(unit, Batch | ForgetRequest):
                if not self._pending:
                    return self._handed_out(unit, 1)
                self._queue.appendleft(unit)
                break
            if unit is None:
                break
            self._pending.append(unit)
        if not self._pending:
            return None
        batch, units = batch_of(self._offset, self._pending), len(self._pending)
        self._pending.clear()
        return self._handed_out(batch, units)

    def _handed_out(self, event: Event, units: int) -> Event:
        self._taken += units
        self._offset = event.end
        return event

    def _next_unit(self) -> Unit | None:
        while not self._queue and not self._ended:
            self._queue.extend(self._pull_units())
        return self._queue.popleft() if self._queue else None

    def _pull_units(self) -> Sequence[Unit]:
        """The records or the event that the next item holds; none at the end, which is noted."""
        item = self._pull()
        if item is ENDED:
            self._ended = True
            return ()
        self._items += 1
        units = self._conversion.units_of(item)
        self._pulled += len(units)
        return units

    def _pull(self) -> Any:
        """The next item, from a reader made anew up to `retries` times where the user's code raises."""
        attempt = 0
        while True:
            try:
                if self._reader is None:
                    self._reader = self._opened()
                item = self._reader.pull()
                if item is ENDED:
                    self._check_end()
            except StreamclError:
                raise
            except Exception as error:  # the user's code may raise anything
                can_return = self._reader is None or self._reader.replayable
                self._reader = None
                if not can_return or attempt >= self._retries:
                    raise self._failed(error, attempt) from error
                self._sleep(self._backoff * 2**attempt)
                attempt += 1
            else:
                return item

    def _opened(self) -> RecordReader:
        """A reader after the last item read, by way of the latest mark."""
        made = self._made if self._fresh else as_items(self._make())
        self._fresh = False
        self._promised = length_of(made)
        mark = self._marks[-1]
        reader = open_reader(made, mark.items, mark.inner, deterministic=self._deterministic)
        for _ in range(self._items - mark.items):
            if reader.pull() is ENDED:
                raise SourceError(f"{self._name} replays shorter: it ends before item {self._items}")
        return reader

    def _check_end(self) -> None:
        """A length counts items or records, as the user pleases; the end comes early where both are fewer."""
        most = max(self._items, self._conversion.offset)
        if self._promised is not None and most < self._promised:
            raise SourceError(f"{self._name} ended early, after {most} of {self._promised}")

    def _mark(self) -> None:
        """Remember the place reached, once an event, and forget those that the position has passed.

        Not after the end: there many iterators' states are those of a new beginning.
        """
        reader = self._reader
        if (
            reader is not None
            and reader.replayable
            and not self._ended
            and self._marks[-1].items < self._items
        ):
            self._marks.append(
                ResumePoint(self._pulled, self._conversion.offset, self._items, self._state_of(reader))
            )
        while len(self._marks) > 1 and self._marks[1].units <= self._taken:
            self._marks.popleft()

    def _state_of(self, reader: RecordReader) -> Any:
        try:
            return reader.state()
        except StreamclError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise self._failed(error, 0) from error

    def _failed(self, error: Exception, attempts: int) -> SourceError:
        tried = f", {attempts + 1} times" if attempts else ""
        return SourceError(
            f"{self._name} failed at offset {self._conversion.offset}{tried}: {type(error).__name__}: {error}"
        )

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """What the user's object raises while it is asked about itself is a failure of the source."""
        try:
            yield
        except StreamclError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise SourceError(
                f"{self._name} cannot say what it is: {type(error).__name__}: {error}"
            ) from error

    def _first_made(self) -> Any:
        try:
            return as_items(self._make())
        except StreamclError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise SourceError(f"{self._name} could not be made: {type(error).__name__}: {error}") from error
