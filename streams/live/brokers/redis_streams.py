"""Reads one or several Redis Streams, each entry once, and requests to forget from a stream of their own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from streamcl.errors import BadRecord, ConfigError, SourceError
from streamcl.protocols import State
from streamcl.sources.delivery import DeliveryGuarantee
from streamcl.sources.live_reader import Arrival, FetchRecords, RecordKey
from streams.live.brokers.envelope import ENVELOPE, request_of_json
from streams.live.brokers.redis_connection import RedisConnection
from streams.live.brokers.redis_entries import (
    ENTRIES_AT_ONCE,
    EntryFields,
    Lookup,
    entries_of,
    record_of_entry,
    trim_up_to,
)
from streams.live.brokers.stream_position import StreamFacts, StreamPosition, as_text

logger = logging.getLogger(__name__)

OPEN_TIMEOUT = 10.0  # seconds in which the broker must reply: a wrong address is said soon


class RedisReader:
    """The entries of Redis Streams, by plain XREAD: the position is the last id of each key, and no group.

    An entry has the fields of `streams.live.brokers.envelope.record_of_fields`. Before every read, in one
    transaction with it, the position is compared with what is left of each stream.

    Args:
        keys: of the streams to learn from.
        url: see `RedisConnection`.
        password: where the URL holds none.
        requests: key of a stream of requests to forget, in the field "data"; they are read before the data.
        trim: whether entries are removed from all these streams once a checkpoint has passed them. They
            cannot be fetched again then, and nobody else may read the streams.
        on_gap: entries that were removed before they were read end the run ("fail"), or are named in a
            warning ("skip").
        name: of the stream.
        clock: returns the time in seconds.
        sleep: waits that many seconds.
    """

    delivery = DeliveryGuarantee(
        "exactly_once", "entries that are trimmed or deleted before they are read end the run"
    )
    rejoins = True  # with on_gap: skip entries may be lost, and it can be opened again all the same

    def __init__(
        self,
        keys: str | Sequence[str],
        url: str = "redis://localhost:6379/0",
        *,
        password: str | int | None = None,
        requests: str | None = None,
        trim: bool = False,
        on_gap: Literal["fail", "skip"] = "fail",
        name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        data = [keys] if isinstance(keys, str) else list(keys)
        self._requests, self._trim, self._on_gap = requests, trim, on_gap
        self._keys = data if requests is None else [requests, *data]
        if not data or not all(self._keys) or len(set(self._keys)) < len(self._keys):
            raise ConfigError(f"the keys {self._keys} are not distinct names, at least one of them of data")
        if on_gap not in {"fail", "skip"}:
            raise ConfigError(f"on_gap is {on_gap!r}; expected fail or skip")
        self.name = name or "+".join(data)
        self._data = data
        self._shard: Callable[..., RedisReader] = partial(
            RedisReader,
            url=url,
            password=password,
            trim=trim,
            on_gap=on_gap,
            name=self.name,
            clock=clock,
            sleep=sleep,
        )
        self._connection = RedisConnection(url, password, clock=clock, sleep=sleep)
        self._taken: dict[str, StreamPosition] = {}
        self._read: dict[str, StreamPosition] = {}  # read ahead of what was taken
        self._between: dict[tuple[str, str], StreamPosition] = {}  # after each entry read and not taken

    @property
    def guarantee(self) -> DeliveryGuarantee:
        """Exactly once, as entries keep their ids and nothing is marked as read at the broker."""
        if self._on_gap == "fail":
            return self.delivery
        reason = "entries that are trimmed or deleted before they are read are skipped, with a warning"
        return DeliveryGuarantee("at_most_once", reason)

    @property
    def stored_at(self) -> str:
        """The streams, which hold their entries until somebody trims them."""
        until = "a checkpoint has passed them" if self._trim else "somebody trims them"
        streams = f"{', '.join(self._keys)} at {self._connection.address}"
        return f"the Redis streams {streams} hold entries until {until}"

    def open(self, position: State | None) -> None:
        """Connect, and continue after `position`. Raise SourceError at a gap, or without an answer."""
        facts = self._connection.retry_until(self._facts, OPEN_TIMEOUT)
        self._between = {}
        self._taken = {
            key: StreamPosition(*position[key])
            if position is not None and key in position
            else StreamPosition.before_first(facts[key])
            for key in self._keys
        }
        for key in self._keys:
            if facts[key] is None and not self._taken[key].passed and key != self._requests:
                logger.warning("Redis at %s has no stream %r yet", self._connection.address, key)
            self._taken[key] = self._checked(key, self._taken[key], facts[key])
        self._read = dict(self._taken)

    def shard(self, rank: int, world: int) -> RedisReader:
        """Return a reader of every `world`-th key of data, and on rank 0 of the requests."""
        if len(self._data) < world:
            raise ConfigError(
                f"{len(self._data)} streams cannot be divided among {world} ranks",
                hint="give as many keys as ranks, or start fewer ranks",
            )
        return self._shard(self._data[rank::world], requests=self._requests if rank == 0 else None)

    @staticmethod
    def merge(positions: Sequence[State | None]) -> State | None:
        """Return the position of all shards: each has its own keys."""
        return {key: each for position in positions for key, each in (position or {}).items()} or None

    def poll(self, timeout: float) -> Sequence[Arrival]:
        """Return requests where there are any, else entries; wait for the first of them only."""
        arrivals = self._connection.attempt(self._next_entries, timeout)
        if arrivals is None or arrivals or timeout <= 0:
            return arrivals or ()
        self._connection.attempt(lambda client: self._wait(client, timeout), 0.0)
        return self._connection.attempt(self._next_entries, 0.0) or ()

    def replay(self, keys: Sequence[RecordKey]) -> Sequence[Arrival]:
        """Return the entries with these keys and ids; one that is gone is a BadRecord."""
        arrivals = list[Arrival]()
        for start in range(0, len(keys), ENTRIES_AT_ONCE):
            part = keys[start : start + ENTRIES_AT_ONCE]
            found = self._connection.retry_until(partial(entries_of, places=part), OPEN_TIMEOUT)
            arrivals += [
                self._arrival(key, entry, fields) for (key, entry), fields in zip(part, found, strict=True)
            ]
        return arrivals

    def advance(self, keys: Sequence[RecordKey]) -> None:
        """Move the position of each key past its entries."""
        for key, entry in keys:
            self._taken[key] = self._between.pop((key, entry))

    def position(self) -> State:
        """Return, for each key, the last id, how many entries were passed, and the last deletion known."""
        return {key: list(position) for key, position in self._taken.items()}

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        """Remove what a durable checkpoint has passed, where `trim` says so; else nothing is done."""
        ends = {key: StreamPosition(*each).id for key, each in position.items()}
        if self._trim:
            self._connection.attempt(lambda client: trim_up_to(client, ends), 0.0)

    @property
    def fetch(self) -> FetchRecords | None:
        """Returns the entries that are still there; None where they are trimmed."""
        return None if self._trim else Lookup(self._connection, self._data, OPEN_TIMEOUT)

    def lag(self) -> int | None:
        """Return how many entries of data wait; None while the broker is away."""
        facts = self._connection.attempt(self._facts, 0.0)
        if facts is None or not self._taken:
            return None
        behind = (
            each.added - self._taken[key].passed
            for key, each in facts.items()
            if each is not None and key != self._requests
        )
        return max(0, sum(behind))

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()

    def _facts(self, client: Any) -> dict[str, StreamFacts | None]:
        """Return what is known of each stream; None of one that is not there."""
        pipe = client.pipeline(transaction=True)
        for key in self._keys:
            pipe.xinfo_stream(key)
        return dict(
            zip(self._keys, map(self._facts_of, self._keys, pipe.execute(raise_on_error=False)), strict=True)
        )

    def _facts_of(self, key: str, answer: Any) -> StreamFacts | None:
        if isinstance(answer, Exception):
            if "no such key" in str(answer):
                return None
            raise SourceError(f"the stream {key!r} cannot be read: {answer}")
        try:
            return StreamFacts.of(answer)
        except KeyError:
            raise SourceError(
                f"Redis at {self._connection.address} does not count the entries of a stream",
                hint="Redis 7 or newer is needed, so that a gap is noticed",
            ) from None

    def _checked(self, key: str, position: StreamPosition, facts: StreamFacts | None) -> StreamPosition:
        """Return the position to read on from. Raise SourceError at a gap, unless it may be skipped."""
        if (gap := position.gap(facts)) is None:
            return position
        message = f"a gap in the stream {key!r} of Redis at {self._connection.address}: {gap}"
        if self._on_gap == "fail":
            hint = "on_gap: skip goes on without them; keep more entries (XADD MAXLEN, XTRIM) than a run lags"
            raise SourceError(message, hint=hint)
        logger.warning("%s; reading goes on without them", message)
        return position.beyond(facts)

    def _next_entries(self, client: Any) -> list[Arrival]:
        """Return the next requests, or where there is none the next entries of data."""
        pipe = client.pipeline(transaction=True)
        for key in self._keys:
            pipe.xinfo_stream(key)
        for key in self._keys:
            pipe.xread({key: self._read[key].id}, count=max(1, ENTRIES_AT_ONCE // len(self._keys)))
        answers = pipe.execute(raise_on_error=False)
        found = list[Arrival]()
        for key, info, answer in zip(self._keys, answers, answers[len(self._keys) :], strict=False):
            facts = self._facts_of(key, info)
            self._read[key] = self._checked(key, self._read[key], facts)
            if key != self._requests and found and found[0].key[0] == self._requests:
                break
            found += [
                self._arrival(key, as_text(entry), fields) for entry, fields in _entries_in(key, answer)
            ]
        return found

    def _wait(self, client: Any, timeout: float) -> None:
        """Wait until a stream has an entry that was not read."""
        client.xread({key: each.id for key, each in self._read.items()}, 1, max(1, int(1000 * timeout)))

    def _arrival(self, key: str, entry: str, fields: EntryFields | None) -> Arrival:
        """Return an entry as what has come, and move the position of what was read past it."""
        self._read[key] = self._between[key, entry] = self._read[key].after(entry)
        place = f"{key}/{entry}"
        if fields is None:
            return Arrival(BadRecord(f"the entry {place} was removed"), [key, entry])
        if key == self._requests:
            return Arrival(request_of_json(fields.get(ENVELOPE.encode(), b""), place), [key, entry])
        return Arrival(record_of_entry(fields, place), [key, entry])


def _entries_in(key: str, answer: Any) -> Sequence[tuple[str, EntryFields]]:
    """Return the entries in an answer of XREAD about one stream."""
    if isinstance(answer, Exception):
        raise SourceError(f"the stream {key!r} cannot be read: {answer}")
    return [(as_text(entry), fields) for entry, fields in answer[0][1]] if answer else ()
