"""Writes what a producer receives to a spool: durable on return, each id once, waiting for room."""

from __future__ import annotations

import errno
import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from streamcl.errors import BadRecord, SourceError, SpoolFull
from streamcl.sources.delivery import DeliveryGuarantee
from streams.live.spool.spool import Spool
from streams.live.spool.spool_record import SpoolEntry, SpoolFormat, header_of, is_record
from streams.user.records import reason_of

logger = logging.getLogger(__name__)

_Rest = TypeVar("_Rest")
_Read: TypeAlias = tuple[Sequence[SpoolEntry], _Rest]

RECENT_IDS = 100_000
"""Ids that are remembered, some 15 MB; a repetition after more records is not recognised as one."""
REMINDER = 60.0
"""Seconds between two messages of a writer that waits for room."""
MAX_HEADER_BYTES = 64 * 1024  # bytes, of names of the longest kind
GROUP_BYTES = 8 * 2**20
"""Bytes that are written together, unless one record has more; the smallest spool has twice as many."""
FULL = {errno.ENOSPC, errno.EDQUOT}


def in_groups(read: Sequence[_Read[_Rest]]) -> Iterator[list[_Read[_Rest]]]:
    """Yield pairs of entries and anything, in groups of `GROUP_BYTES`, or of one pair that has more."""
    group, size = list[_Read[_Rest]](), 0
    for pair in read:
        more = sum(entry.size for entry in pair[0])
        if group and size + more > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(pair)
        size += more
    if group:
        yield group


class SpoolWriter:
    """Appends records to a spool, in any thread.

    A record whose id is among the last `recent_ids` is a repetition: it is not written again. Records of
    samples and bad records share the ids; a record without one is never a repetition.

    Args:
        spool: open.
        name: of the stream; a record without an id is called "{name}-{its number}".
        form: how records are read.
        recent_ids: how many ids are remembered, also over a restart; 0: none.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        spool: Spool,
        name: str,
        form: SpoolFormat | None = None,
        *,
        recent_ids: int = RECENT_IDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.form, self.repetitions = form or SpoolFormat(), 0
        self._spool, self._name, self._clock = spool, name, clock
        self._most, self._closed, self._lock = recent_ids, False, threading.RLock()
        self._ids: OrderedDict[bytes, int] = OrderedDict()
        log = spool.log
        first = max(log.first, log.end - recent_ids)
        for record in log.find(lambda _: recent_ids > 0, first, bodies=False):
            head = header_of(record)
            self._remember(head.get("id") if is_record(head) else None, record.sequence)

    @property
    def folder(self) -> Path:
        """The spool's."""
        return self._spool.folder

    @property
    def note(self) -> bytes:
        """The note of the last group: up to where the producer's source was read; b"" at the beginning."""
        return self._spool.log.note

    def append(self, record: Any, *, timeout: float | None = None) -> int:
        """Write one record and return its number in the spool; on return it survives a crash.

        This is for a producer such as a server, which says "received" afterwards. The number of a repetition
        is that of the first one.

        Args:
            record: see `streams.user.records.to_sample`; one that cannot be read takes a number, and is
                quarantined when it is learned. Or a ForgetRequest.
            timeout: seconds to wait for room in the spool; None: as long as it takes.

        Raises:
            SpoolFull: there is no room in time.
            SourceError: the spool is closed, or its disk fails.
            BadRecord: the record is bad, and `on_bad_record` is "fail"; or it is a batch.
        """
        entries = list(self.form.entries_of(record))
        if len(entries) != 1:
            raise BadRecord(f"{len(entries)} records where one was expected")
        return self.append_entries(entries, timeout=timeout)[0]

    def append_entries(
        self, entries: Sequence[SpoolEntry], note: bytes | None = None, *, timeout: float | None = None
    ) -> list[int]:
        """Write a group with one sync, all or nothing, and return the numbers; see `append`.

        A group must fit into the spool (see `in_groups`); a record that never would is a bad one.
        note: replaces the spool's note in the same step.
        """
        entries = [self.fitting(entry) for entry in entries]
        with self._lock:
            numbers, new = self._numbered(entries)
            group = [entry.numbered(f"{self._name}-{number}") for number, entry in new.items()]
            self._append(group, note, timeout)
            for number, entry in new.items():
                self._remember(entry.id, number)
            self.repetitions += len(entries) - len(new)
        with self._spool.changed:
            self._spool.changed.notify_all()
        return numbers

    def close(self) -> None:
        """Let whoever waits for room raise SourceError."""
        self._closed = True
        with self._spool.changed:
            self._spool.changed.notify_all()

    def fitting(self, entry: SpoolEntry) -> SpoolEntry:
        """Return the entry; a bad one in place of a record for which the empty spool would have no room."""
        most = self._spool.retention.max_bytes
        if len(entry.body) + MAX_HEADER_BYTES <= most or not entry.body:
            return entry
        bad = BadRecord(
            f"the record has {len(entry.body)} bytes, and the spool may have {most}", hint="raise max_bytes"
        )
        if self.form.policy.on_bad_record == "fail":
            raise bad
        named = {} if entry.id is None else {"id": entry.id}
        return SpoolEntry({"kind": "bad", "reason": reason_of(bad), **named})

    def _numbered(self, entries: Sequence[SpoolEntry]) -> tuple[list[int], dict[int, SpoolEntry]]:
        """Return the number of each entry, and those to write, by their numbers."""
        numbers, new, within = list[int](), dict[int, SpoolEntry](), dict[str, int]()
        for entry in entries:
            number = None if entry.id is None or not self._most else within.get(entry.id)
            if number is None:
                number = self._ids.get(_digest(entry.id)) if entry.id is not None else None
            if number is None:
                number = self._spool.log.end + len(new)
                new[number] = entry
                if entry.id is not None:
                    within[entry.id] = number
            numbers.append(number)
        return numbers, new

    def _append(self, group: list[tuple[bytes, bytes]], note: bytes | None, timeout: float | None) -> None:
        """Append to the log once there is room."""
        size, waited = sum(len(head) + len(body) + 64 for head, body in group), _Wait(self, timeout)
        while True:
            if self._closed:
                raise SourceError(f"the spool in {self._spool.folder} is closed")
            self._spool.trim(size)
            reason = self._spool.lacks_room(size)
            if reason is None:
                try:
                    self._spool.log.append(group, note)
                except OSError as error:
                    if error.errno not in FULL:
                        raise SourceError(f"the spool cannot be written: {error.strerror}") from error
                    reason = f"its disk is full ({error.strerror})"
                else:
                    waited.end()
                    return
            waited.wait(reason)

    def _remember(self, name: str | None, number: int) -> None:
        if name is None or not self._most:
            return
        self._ids[_digest(name)] = number
        for oldest in list(islice(self._ids, max(0, len(self._ids) - self._most))):
            del self._ids[oldest]


class _Wait:
    """Waits for room in the spool, and says so now and then."""

    def __init__(self, writer: SpoolWriter, timeout: float | None) -> None:
        self._writer, self._spool, self._clock = writer, writer._spool, writer._clock
        self._began, self._timeout, self._next = self._clock(), timeout, 0.0
        self._said = False

    def wait(self, reason: str) -> None:
        """Wait for a change. Raise SpoolFull where the time is over."""
        now = self._clock()
        if self._timeout is not None and now - self._began >= self._timeout:
            raise SpoolFull(f"the spool in {self._spool.folder} has no room: {reason}")
        if not self._said or now >= self._next:
            self._said, self._next = True, now + REMINDER
            logger.warning(
                "the spool in %s has no room: %s, and nothing more in it is learned; the source waits",
                self._spool.folder,
                reason,
            )
        left = 1.0 if self._timeout is None else min(1.0, self._timeout)
        with self._spool.changed:
            self._spool.changed.wait(left)

    def end(self) -> None:
        """Say that there is room again, where it was said that there is none."""
        if self._said:
            logger.info("the spool in %s has room again", self._spool.folder)


@runtime_checkable
class SpoolProducer(Protocol):
    """Receives records from somewhere and writes them to a spool, in a thread of its own."""

    name: str

    @property
    def guarantee(self) -> DeliveryGuarantee:
        """How often each record is learned, with the spool behind it."""

    def run(self, writer: SpoolWriter, stop: threading.Event) -> None:
        """Write what comes until `stop` is set, or the source ends; raise SourceError where it fails.

        Say "received" to the other end only after `append` or `append_entries` has returned.
        """


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).digest()
