"""Entries of Redis Streams as records: by their places, by their ids, and their removal."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from streamcl.errors import BadRecord
from streams.live.brokers.envelope import record_of_fields, text_id
from streams.live.brokers.redis_connection import RedisConnection
from streams.live.brokers.stream_position import BEGINNING, as_text, is_entry_id, next_id

ENTRIES_AT_ONCE = 64  # entries, over all keys, so that few are in memory

EntryFields: TypeAlias = Mapping[bytes, bytes]


def record_of_entry(fields: EntryFields, place: str) -> Mapping[str, Any] | BadRecord:
    """Return an entry's record (see `record_of_fields`); place: "<key>/<entry id>", its id by default."""
    return record_of_fields({name.decode(errors="replace"): each for name, each in fields.items()}, place)


def entries_of(client: Any, places: Iterable[Sequence[str]]) -> list[EntryFields | None]:
    """Return the fields of the entries at these pairs of a key and an id; None of one that is gone."""
    pipe = client.pipeline(transaction=False)
    for key, entry in places:
        pipe.xrange(key, entry, entry)
    return [found[0][1] if found else None for found in pipe.execute()]


def _entries_from(client: Any, key: str, start: str) -> list[tuple[bytes, EntryFields]]:
    """Return the first entries of a stream from an id on."""
    return list(client.xrange(key, start, "+", ENTRIES_AT_ONCE))


def trim_up_to(client: Any, ends: Mapping[str, str]) -> None:
    """Remove the entries of each stream up to an id, that one included."""
    pipe = client.pipeline(transaction=False)
    for key, end in ends.items():
        pipe.xtrim(key, minid=next_id(end), approximate=False)
    pipe.execute()


class Lookup:
    """Finds records by their ids among the entries that the streams with these keys still have.

    Ids of the form "<key>/<entry id>" are looked up; for others the streams are read from their beginning.
    """

    def __init__(self, connection: RedisConnection, keys: Sequence[str], timeout: float) -> None:
        self._connection, self._keys, self._timeout = connection, keys, timeout

    def __call__(self, ids: Sequence[str]) -> Generator[tuple[str, Any], None, None]:
        """Yield ids and records that are still there. Raise SourceError without a broker."""
        wanted = frozenset(ids)
        placed = {name: place for name in sorted(wanted) if (place := self._place(name)) is not None}
        places = list(placed.values())
        for start in range(0, len(places), ENTRIES_AT_ONCE):
            part = places[start : start + ENTRIES_AT_ONCE]
            entries = self._connection.retry_until(partial(entries_of, places=part), self._timeout)
            yield from _wanted_among(zip(part, entries, strict=True), wanted)
        if others := wanted - placed.keys():
            for key in self._keys:
                yield from self._search(key, others)

    def _place(self, name: str) -> tuple[str, str] | None:
        """Return the key and the entry's id in a record's id; None where it has none."""
        key, _, entry = name.rpartition("/")
        return (key, entry) if key in self._keys and is_entry_id(entry) else None

    def _search(self, key: str, wanted: frozenset[str]) -> Iterator[tuple[str, Any]]:
        """Yield the wanted records of a stream."""
        after = BEGINNING
        while True:
            read = partial(_entries_from, key=key, start=next_id(after))
            part = self._connection.retry_until(read, self._timeout)
            if not part:
                return
            after = as_text(part[-1][0])
            yield from _wanted_among((((key, as_text(entry)), fields) for entry, fields in part), wanted)


def _wanted_among(
    entries: Iterable[tuple[tuple[str, str], EntryFields | None]], wanted: frozenset[str]
) -> Iterator[tuple[str, Any]]:
    for (key, entry), fields in entries:
        record = None if fields is None else record_of_entry(fields, f"{key}/{entry}")
        if (name := text_id(record)) is not None and name in wanted:
            yield name, record
