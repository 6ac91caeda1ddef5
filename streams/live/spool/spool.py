"""The spool: records of a source that cannot go back, on disk before they are learned and some time after."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamcl.errors import SourceError
from streamcl.events import ForgetRequest
from streamcl.requests.label import Label
from streamcl.storage import files
from streamcl.storage.lock import RunLock
from streamcl.storage.segment import LogRecord
from streamcl.storage.segment_log import SEGMENT_BYTES, SegmentLog
from streams.live.spool.spool_record import erased_header, header_of, is_record, label_of, value_of

DAY = 86_400.0
RESERVED_BYTES = 256 * 2**20
"""Bytes of the disk that a spool leaves free, so that the run can write the checkpoint that empties it."""
SEGMENTS_OF_A_SPOOL = 16
"""Segments of a full spool, and of `keep`: so coarse is its retention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long records are kept.

    keep: seconds, at the end of which a record goes that is learned. max_bytes: of the spool; older records
    that are learned go earlier where it would have more. Records that are not learned stay in any case.
    reserve: bytes that stay free on the disk.
    """

    keep: float = 7 * DAY
    max_bytes: int = 10 * 2**30
    reserve: int = RESERVED_BYTES


class Spool:
    """A folder with a log of records, which one process holds while it is open.

    `erase`, `fetch` and `scrub` open it for themselves where it is not. Every method may be called in any
    thread; `changed` is notified when there are new records or new room, or the spool is closed.
    """

    def __init__(
        self,
        folder: Path,
        retention: Retention = Retention(),
        *,
        disk: files.Disk = files.DISK,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder, self.retention = folder, retention
        self._disk, self._clock = disk, clock
        self._lock = RunLock(folder)
        self._log: SegmentLog | None = None
        self._opening = threading.RLock()
        self.changed = threading.Condition()
        self._learned = 0

    @property
    def description(self) -> str:
        """For how long the spool keeps a record."""
        return f"what was received is kept for {self.retention.keep / DAY:g} days after it was learned"

    @property
    def log(self) -> SegmentLog:
        """The log. Raise SourceError where the spool is closed."""
        if self._log is None:
            raise SourceError(f"the spool in {self.folder} is closed")
        return self._log

    @property
    def is_open(self) -> bool:
        """Whether this process holds it."""
        return self._log is not None

    def open(self) -> None:
        """Take the folder; its last, unfinished append is cut off. Raise RunBusy where another has it."""
        with self._opening:
            if self._log is None:
                files.make_folder(self.folder, disk=self._disk)
                with ExitStack() as stack:
                    self._lock.acquire()
                    stack.callback(self._lock.release)
                    self._log = self._opened()
                    stack.pop_all()

    def close(self) -> None:
        """Release the folder; who waits for records or for room is woken up."""
        with self._opening:
            if self._log is not None:
                self._log.close()
                self._lock.release()
                self._log = None
        with self.changed:
            self.changed.notify_all()

    def acknowledge(self, sequence: int) -> None:
        """Take the number below which every record is part of a durable checkpoint."""
        self._learned = max(self._learned, sequence)
        self.trim()
        with self.changed:
            self.changed.notify_all()

    def trim(self, room: int = 0) -> None:
        """Drop learned records that are too old, and older ones for `room` bytes more."""
        keep, most = self.retention.keep, self.retention.max_bytes - room
        self.log.drop(self._learned, older_than=keep, max_bytes=most)
        while files.free_bytes(self.folder) - room < self.retention.reserve:
            if not self.log.drop(self._learned, older_than=keep, max_bytes=self.log.size - 1):
                break

    def lacks_room(self, room: int) -> str | None:
        """Return why `room` bytes more do not fit; None where they do."""
        size, most = self.log.size, self.retention.max_bytes
        if size + room > most:
            return f"it has {size} of {most} bytes (max_bytes)"
        free = files.free_bytes(self.folder)
        if free - room < self.retention.reserve:
            return f"its disk has {free} bytes left, of which {self.retention.reserve} stay free"
        return None

    def fetch(self, ids: Sequence[str], before: int | None = None) -> Generator[tuple[str, Any], None, None]:
        """Yield the kept records with these ids. All headers are searched.

        before: only records with smaller numbers; None: any.
        """
        wanted = set(ids)

        def matches(record: LogRecord) -> bool:
            head = header_of(record)
            is_early = before is None or record.sequence < before
            return is_early and head["kind"] == "sample" and head["id"] in wanted

        with self._borrowed() as log:
            yield from ((header_of(each)["id"], value_of(each)) for each in log.find(matches))

    def count(self, erasures: Sequence[tuple[ForgetRequest, Collection[str]]]) -> int:
        """Return how many records `erase` would redact. All headers are searched."""
        selected = _Erased(erasures)

        def is_erased(record: LogRecord) -> bool:
            head = header_of(record)
            return is_record(head) and selected.has(head)

        with self._borrowed() as log:
            return sum(1 for _ in log.find(is_erased, bodies=False))

    def erase(self, erasures: Sequence[tuple[ForgetRequest, Collection[str]]]) -> int:
        """Redact records (see RetainedRecords) in one pass; return how many."""
        selected, erased = _Erased(erasures), 0

        def replacement(record: LogRecord) -> bytes | None:
            nonlocal erased
            head = header_of(record)
            if not selected.has(head):
                return None
            erased += is_record(head)
            return erased_header(head)

        self._redact(replacement)
        return erased

    def erase_returned(self, ids: Collection[str], labels: Collection[Label]) -> None:
        """Redact records with these ids, and these labels, of those that no durable checkpoint has passed."""

        def replacement(record: LogRecord) -> bytes | None:
            head = header_of(record)
            is_returned = (is_record(head) and head["id"] in ids) or label_of(head) in labels
            return erased_header(head) if is_returned else None

        self._redact(replacement, self._learned)

    def scrub(self, request: ForgetRequest) -> None:
        """Redact a request, and no record."""
        selected = _Erased([(request, ())])

        def replacement(record: LogRecord) -> bytes | None:
            head = header_of(record)
            return erased_header(head) if selected.has_request(head) else None

        self._redact(replacement)

    def _redact(self, replacement: Callable[[LogRecord], bytes | None], start: int = 0) -> None:
        with self._borrowed() as log:
            log.redact(replacement, start)

    @contextmanager
    def _borrowed(self) -> Iterator[SegmentLog]:
        """Yield the log, opened for this once where the spool is not."""
        with self._opening:
            was_open = self.is_open
            self.open()
            try:
                yield self.log
            finally:
                if not was_open:
                    self.close()

    def _opened(self) -> SegmentLog:
        return SegmentLog(
            self.folder,
            segment_bytes=min(SEGMENT_BYTES, self.retention.max_bytes // SEGMENTS_OF_A_SPOOL),
            segment_seconds=self.retention.keep / SEGMENTS_OF_A_SPOOL,
            disk=self._disk,
            clock=self._clock,
        )


class _Erased:
    """The records, labels and requests that some requests reach."""

    def __init__(self, erasures: Sequence[tuple[ForgetRequest, Collection[str]]]) -> None:
        requests = [request for request, _ in erasures]
        self._requests = {request.id for request in requests}
        self._keys = {request.key for request in requests} - {None}
        self._ids = {name for _, ids in erasures for name in ids}
        dropped = [request for request in requests if request.on_return == "drop"]
        self._labels = {request.label for request in dropped if request.kind == "class"}
        self._subjects = {request.subject for request in dropped if request.kind == "subject"} - {None}
        self._every_user = any(request.all_users for request in dropped)

    def has(self, head: Mapping[str, Any]) -> bool:
        """Return whether a header has one of the ids, or what would be dropped where it comes again."""
        if head["kind"] not in {"sample", "bad", "label"}:
            return self.has_request(head)
        return (
            head["id"] in self._ids
            or head.get("label") in self._labels
            or head.get("subject") in self._subjects
            or (self._every_user and head.get("privacy") == "user")
        )

    def has_request(self, head: Mapping[str, Any]) -> bool:
        """Return whether a header is that of one of the requests, or of the same one sent again."""
        if head["kind"] != "request":
            return False
        sent = head["request"]
        return sent.get("id") in self._requests or sent.get("key") in self._keys
