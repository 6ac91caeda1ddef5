"""A source of whatever a live reader brings: cut into batches by number and by time, the same at a replay."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

from streamcl.errors import BadRecord, RefusedRequest, SourceError, StreamclError
from streamcl.events import Batch, Event, ForgetRequest, Idle, PlacedEvent, Preview, Sample, StreamInfo
from streamcl.protocols import Fetch, State
from streamcl.sources.delivery import DeliveryGuarantee
from streamcl.sources.live_reader import Arrival, LiveReader, RecordKey, Rejoining
from streamcl.sources.retention import RetainedRecords, retained_of, stored_at
from streams.live.arrival_log import ArrivalLog, CutBatch
from streams.live.backlog import Backlog
from streams.live.cutting import Cutting
from streams.live.waiting_units import LiveUnit, WaitingUnits
from streams.offsets import batch_of, records_of
from streams.user.conversion import Conversion
from streams.user.decoding import DecodingPool
from streams.user.records import RecordPolicy, to_sample

logger = logging.getLogger(__name__)

POLL = 0.5  # seconds for the reader at most: so soon an idle loop is given the chance to stop, or to forget


class LiveSource:
    """The records of a live reader as batches; a batch goes when it is full or its first record has waited.

    How the stream was cut is logged before each batch is handed out, and repeated after a restart, so that a
    run that was killed learns the same batches as one that was not. Between batches it yields `Idle` while
    nothing comes, and `Preview` where `cutting` says so.

    Args:
        reader: brings the records.
        cutting: when a batch is complete.
        policy: limits, and what is done with bad records.
        columns: keys of the reader's mappings, as for `IterableSource`.
        log: of the batches cut since the last checkpoint; None where the run cannot be resumed.
        clock, now: return the time in seconds; that of `now` is since the epoch, and batches carry it.
    """

    def __init__(
        self,
        reader: LiveReader,
        *,
        cutting: Cutting = Cutting(),  # noqa: B008 - frozen
        policy: RecordPolicy | None = None,
        columns: Mapping[str, str] | None = None,
        log: ArrivalLog | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.reader, self._cutting, self._policy = reader, cutting, policy or RecordPolicy()
        self._columns, self._log, self._clock, self._now = columns, log, clock, now
        self._decoding = DecodingPool(self._policy, (columns or {}).get("image", "image"))
        self._durable = deque[Mapping[str, Any]](maxlen=1)
        self._open, self._opening = False, threading.Lock()  # fetching is done in another thread
        self._begin(None, events=0, offset=0, seen=())

    @property
    def info(self) -> StreamInfo:
        """The reader's name; a live stream has no known length."""
        return StreamInfo(self.reader.name)

    @property
    def guarantee(self) -> DeliveryGuarantee:
        """The reader's delivery guarantee."""
        return self.reader.guarantee

    @property
    def replayable(self) -> bool:
        """Whether a new process can continue from a position."""
        reader = self.reader
        can_return = reader.guarantee.kind != "at_most_once" or isinstance(reader, Rejoining)
        return can_return or self.retained is not None

    @property
    def retained(self) -> RetainedRecords | None:
        """The copies of records that the reader keeps, or None."""
        return retained_of(self.reader)

    @property
    def stored_at(self) -> str | None:
        """The place where the records stay at the other end, or None."""
        return stored_at(self.reader)

    @property
    def fetch(self) -> Fetch | None:
        """Yields samples by their ids, as far as they still exist at the other end; None where it cannot."""
        return None if self.reader.fetch is None else self._fetch

    def lag(self) -> int | None:
        """Return how many records wait at the other end; None where that is not known, or not yet.

        May be called in any thread: the reader is asked in that which reads, between two polls.
        """
        self._lag_wanted = True
        return self._lag

    @property
    def log(self) -> ArrivalLog | None:
        """The log of the batches cut since the last checkpoint."""
        return self._log

    @property
    def batches_logged(self) -> int:
        """How many events after the position were handed out before a crash, and will be again."""
        return 0 if self._log is None else len(self._log.since(self._events))

    def __iter__(self) -> Iterator[Event]:
        self._connect()
        for cut in () if self._log is None else self._log.since(self._events):
            self._arrive(self._again(cut.keys))
            yield self._hand_out(len(self._waiting), cut)
        while True:
            arrivals, failure = self._poll()
            self._relay()
            self._note_lag()
            while (complete := self._complete(ended=arrivals is None)) > 0:
                yield self._cut(complete)
                self._relay()
            if failure is not None:
                raise failure
            if arrivals is None:
                return
            if self._cutting.previews and (preview := self._preview()) is not None:
                yield preview
            elif not arrivals:
                yield Idle()

    def state_dict(self) -> State:
        """Return the position after the last event, and digests of the classes seen."""
        seen = list(self._conversion.seen)
        return {"events": self._events, "offset": self._offset, "seen": seen, "reader": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from that position; records that were waiting are read again."""
        self.close()
        self._begin(state["reader"], events=state["events"], offset=state["offset"], seen=state["seen"])

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        """Take a position that no restart goes back behind; the reader is given it between two polls."""
        if self._log is not None:
            self._log.drop_before(position["events"])
        self._durable.append(position)

    def close(self) -> None:
        """Disconnect the reader and close the log."""
        if self._open:
            self.reader.close()
            self._open = False
        self._decoding.close()
        if self._log is not None:
            self._log.close()

    def _connect(self) -> None:
        """Open the reader, unless it is: before the first read, or before records are fetched."""
        with self._opening:
            if not self._open:
                self.reader.open(self._position)
                self._open = True

    def _begin(self, position: State | None, *, events: int, offset: int, seen: Sequence[str]) -> None:
        self._position, self._events, self._offset = position, events, offset
        self._waiting = WaitingUnits()
        self._shown = 0  # how many of the records that wait were shown
        self._backlog = Backlog(self.reader.lag, self._clock)
        self._lag: int | None = None
        self._lag_wanted = False  # nobody asks for it in most runs, and a broker takes a round trip
        self._conversion = Conversion(
            self.reader.name, self._policy, (), self._columns, offset=offset, seen=seen
        )

    def _poll(self) -> tuple[Sequence[Arrival] | None, StreamclError | None]:
        """Return what has come, None at the end; or None and the error, raised after what came before it."""
        try:
            arrivals = self.reader.poll(self._poll_timeout())
            self._arrive(arrivals or ())
        except StreamclError as error:
            return None, error
        return arrivals, None

    def _again(self, keys: Sequence[RecordKey]) -> Sequence[Arrival]:
        """Return the records of a batch that was cut before a crash."""
        arrivals = self.reader.replay(keys)
        if len(arrivals) != len(keys):
            raise SourceError(f"{self.reader.name} replays {len(arrivals)} of {len(keys)} records")
        return arrivals

    def _arrive(self, arrivals: Sequence[Arrival]) -> None:
        """Convert what has come, and let it wait for its event."""
        now = self._clock()
        values = self._decoding.ahead(arrival.value for arrival in arrivals)
        for arrival, value in zip(arrivals, values, strict=True):
            self._waiting.add(arrival.key, self._units_of(value), now)

    def _units_of(self, value: Any) -> Iterator[LiveUnit]:
        """Yield the records and labels in what has come, or the request that it is."""
        if isinstance(value, RefusedRequest):
            logger.warning("%s: a request to forget is refused: %s", self.reader.name, value)
            return
        for unit in self._conversion.units_of(value):
            yield from (*records_of(unit), *unit.labels) if isinstance(unit, Batch) else (unit,)

    def _complete(self, *, ended: bool) -> int:
        """Return how many of those that wait make the next event now; 0 where there is none yet."""
        first_came, longest = self._waiting.first_came, self._cutting.max_wait
        if first_came is None:
            return 0
        size = self._cutting.size_at(self._offset)
        units = self._waiting.before_request(size)
        if units == 0:
            return 1  # a request
        waited = longest is not None and self._clock() - first_came >= longest
        full = units < len(self._waiting) or self._waiting.make_full_batch(units, size)
        return units if full or waited or ended else 0

    def _is_too_much(self, count: int) -> bool:
        """Return whether the next batch, of `count` records, is only predicted: too many wait behind it."""
        limit, one_in = self._cutting.overload, self._cutting.learn_one_in
        if limit is None or max(len(self._waiting), self._backlog.records()) - count <= limit:
            return False
        return one_in == 0 or self._events % one_in != 0

    def _cut(self, count: int) -> PlacedEvent:
        """Log that the first `count` of those that wait make the next event, and return it."""
        cut = CutBatch(self._events, self._waiting.keys(count), self._is_too_much(count), self._now())
        if self._log is not None:
            self._log.append(cut)
        return self._hand_out(count, cut)

    def _hand_out(self, count: int, cut: CutBatch) -> PlacedEvent:
        """Return the next event, of the first `count` that wait, and move the position past it."""
        units = self._waiting.take(count)  # none where all of it was erased since the batch was cut
        event: PlacedEvent
        if units and isinstance(units[0], ForgetRequest):
            event = units[0]
        else:
            records = [each for each in units if not isinstance(each, ForgetRequest)]
            event = replace(batch_of(self._offset, records), predict_only=cut.predict_only, time=cut.time)
        self.reader.advance(cut.keys)
        self._backlog.take(len(cut.keys))
        self._position = self.reader.position()
        self._shown = max(0, self._shown - (event.end - self._offset))
        self._events, self._offset = self._events + 1, event.end
        return event

    def _poll_timeout(self) -> float:
        """Return the seconds that the reader may wait for more."""
        first_came, longest = self._waiting.first_came, self._cutting.max_wait
        if first_came is None or longest is None:
            return POLL
        return min(POLL, max(0.0, longest - (self._clock() - first_came)))

    def _note_lag(self) -> None:
        if self._lag_wanted:
            with suppress(StreamclError):  # the broker is away; the next poll says so
                self._lag = self._backlog.known()

    def _preview(self) -> Preview | None:
        """Return the records that wait and were not shown yet; None where all were."""
        records = self._waiting.records
        shown, self._shown = self._shown, len(records)
        return Preview(batch_of(self._offset + shown, records[shown:])) if shown < len(records) else None

    def _relay(self) -> None:
        while self._durable:
            self._pass_on(self._durable.popleft()["reader"])

    def _pass_on(self, position: State | None) -> None:
        """Let the reader know that a position is durable."""
        if position is not None:
            self.reader.acknowledge(position)

    def _fetch(self, ids: Sequence[str]) -> Generator[Sample, None, None]:
        self._connect()
        if (fetch := self.reader.fetch) is None:
            return
        with closing(fetch(ids)) as found:
            for name, value in found:
                try:
                    sample = to_sample(value, default_id=name, policy=self._policy)
                except BadRecord:
                    continue
                yield sample
