"""An append-only log in segments: synced in groups, cut after a crash, emptied by age and size, redacted."""

from __future__ import annotations

import io
import logging
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from streamcl.storage import files
from streamcl.storage.segment import (
    NOTE,
    SEGMENT_SUFFIX,
    LogFrame,
    LogRecord,
    Segment,
    encode_frame,
    frames,
    last_group,
    read_body,
    read_frame,
    records,
    rewrite,
)

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 16 * 2**20
"""Bytes after which a segment is full: what an erasure rewrites at once, and what retention removes."""


class SegmentLog:
    """Records, numbered from 0, in files of some megabytes each in one folder.

    `append` writes a group of records and syncs once; a crash leaves the group or nothing of it. Only whole
    segments are dropped, and the numbers of the records that stay do not change. A redacted record keeps its
    number and its time. Each method may be called in any thread; memory is bounded by a group and by what
    one `read` returns. One process at a time may open the folder: the caller holds a lock.

    Args:
        folder: of the log alone; made where it is missing.
        segment_bytes: after which a new segment begins; a group is never divided.
        segment_seconds: the age of a segment after which a new one begins.
        disk: writes files.
        clock: returns the seconds since the epoch.

    Raises:
        DamagedLog: a file that was synced cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        segment_seconds: float = float("inf"),
        disk: files.Disk = files.DISK,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._disk, self._clock = folder, disk, clock
        self._segment_bytes, self._segment_seconds = segment_bytes, segment_seconds
        self._lock = threading.RLock()
        self._handle: io.FileIO | None = None
        self._place: tuple[int, Segment, int] | None = None  # the next record to read, its file, its offset
        self._end, self._note = 0, b""
        files.make_folder(folder, disk=disk)
        files.sweep(folder, disk=disk)
        self._segments = [Segment.of(path) for path in sorted(folder.glob(f"*{SEGMENT_SUFFIX}"))]
        for older, newer in pairwise(self._segments):
            older.newest = newer.began
        if self._segments:
            self._recover()
        else:
            self._begin_segment()

    @property
    def first(self) -> int:
        """The number of the first record that is still there."""
        return self._segments[0].first

    @property
    def end(self) -> int:
        """The number that the next record gets."""
        return self._end

    @property
    def size(self) -> int:
        """The bytes of all segments."""
        with self._lock:
            return sum(each.size for each in self._segments)

    @property
    def note(self) -> bytes:
        """The note of the last group that had one; b"" where none had."""
        return self._note

    def append(self, group: Sequence[tuple[bytes, bytes]], note: bytes | None = None) -> range:
        """Write a group of pairs (head, body), sync, and return their numbers.

        note: replaces the log's note in the same step, such as the position that the group was read up to.
        Raise OSError where the disk refuses: then the log is as it was.
        """
        with self._lock:
            if not group and note is None:
                return range(self._end, self._end)
            now = self._clock()
            if self._is_roll_due(now):
                self._begin_segment()
            note = self._note if note is None else note
            numbers = range(self._end, self._end + len(group))
            data = [encode_frame(0, number, now, *each) for number, each in zip(numbers, group, strict=True)]
            self._write(b"".join((*data, encode_frame(NOTE, numbers.stop, now, note, b""))))
            self._end, self._note, self._segments[-1].newest = numbers.stop, note, now
            return numbers

    def read(self, start: int, *, limit: int, max_bytes: int) -> list[LogRecord]:
        """Return the records from number `start` on: at most `limit`, and none after `max_bytes` are read.

        A number that was dropped is passed over: compare with `first`. Raise DamagedLog.
        """
        found, size = list[LogRecord](), 0
        with self._lock:
            while len(found) < limit and size < max_bytes and start < self._end:
                segment, offset = self._locate(start)
                for file, frame in frames(segment.path, offset, segment.size):
                    if frame.is_note or frame.sequence < start:
                        continue
                    found.append(LogRecord.of(frame, read_body(file, frame)))
                    start, size = frame.sequence + 1, size + frame.body_bytes
                    self._place = start, segment, frame.end
                    if len(found) == limit or size >= max_bytes:
                        return found
                start = max(start, self._first_behind(segment))
                self._place = start, segment, segment.size
        return found

    def find(
        self, wanted: Callable[[LogRecord], bool], start: int = 0, *, bodies: bool = True
    ) -> Iterator[LogRecord]:
        """Yield the records from number `start` on that `wanted` accepts, which is given them without body.

        Only heads are read, and the bodies of what is yielded.
        """
        for segment in self._segments_from(start):
            with self._lock:
                if self._is_dropped(segment):
                    continue
                found = records(
                    segment, lambda frame: frame.sequence >= start and wanted(LogRecord.of(frame))
                )
            for frame in found:
                yield self._with_body(segment, frame) if bodies else LogRecord.of(frame)

    def redact(self, replacement: Callable[[LogRecord], bytes | None], start: int = 0) -> int:
        """Put a new head, and no body, in the place of every record for which there is a replacement.

        A segment is rewritten whole, so after a crash its records are as before or redacted; redacting again
        is harmless. No file of the folder then holds the old bytes. Return how many records changed.

        replacement: is given a record without its body. start: segments before it are not searched.
        """
        return sum(self._redact(segment, replacement) for segment in self._segments_from(start))

    def drop(self, before: int, *, older_than: float, max_bytes: float) -> int:
        """Remove segments whose records all have numbers below `before`, oldest first; return how many.

        Those of which every record is older than `older_than` seconds go; and while the log has more than
        `max_bytes`, the oldest do.
        """
        dropped = 0
        with self._lock:
            now = self._clock()
            if self._is_end_due(now, before, older_than, max_bytes):
                self._begin_segment()
            while len(self._segments) > 1 and self._segments[1].first <= before:
                if now - self._segments[0].newest <= older_than and self.size <= max_bytes:
                    break
                files.remove(self._segments.pop(0).path, disk=self._disk)
                dropped += 1
        return dropped

    def close(self) -> None:
        """Close the file that is written to."""
        with self._lock:
            if self._handle is not None:
                self._handle.close()
                self._handle = None

    def _recover(self) -> None:
        """Cut what a crash has left behind the last group."""
        newest, last = self._segments[-1], last_group(self._segments[-1].path)
        if (torn := newest.size - last.end) > 0:
            logger.warning("%s: %d bytes of an append that a crash cut short are removed", newest.path, torn)
            files.truncate(newest.path, last.end, disk=self._disk)
        newest.size, newest.newest = last.end, last.time
        self._end, self._note = last.sequence, last.head

    def _is_roll_due(self, now: float) -> bool:
        """Return whether the next group belongs into a new segment."""
        newest = self._segments[-1]
        if newest.first == self._end:
            return False
        is_old = now - newest.began > self._segment_seconds
        return newest.size >= self._segment_bytes or is_old or self._path(self._end).exists()

    def _is_end_due(self, now: float, before: int, older_than: float, max_bytes: float) -> bool:
        """Return whether the newest segment is to be dropped, or is one that no record may join any more."""
        newest = self._segments[-1]
        if newest.first == self._end:
            return False
        is_dropped = now - newest.newest > older_than or self.size > max_bytes
        return (self._end <= before and is_dropped) or now - newest.began > self._segment_seconds

    def _begin_segment(self) -> None:
        """Write a new segment without records; where that failed before, only its name is synced."""
        path = self._path(self._end)
        if path.exists():
            self._disk.fsync_folder(self._folder)
        else:
            frame = encode_frame(NOTE, self._end, self._clock(), self._note, b"")
            files.atomic_write(path, frame, disk=self._disk)
        self.close()
        self._segments.append(Segment.of(path))

    def _write(self, data: bytes) -> None:
        """Append and sync bytes; where that fails, cut them off again."""
        newest = self._segments[-1]
        if self._handle is None:
            files.truncate(newest.path, newest.size, disk=self._disk)
            self._handle = files.open_append(newest.path, disk=self._disk)
        try:
            files.write_all(self._handle, data, disk=self._disk)
            self._disk.fsync(self._handle)
        except OSError:
            self.close()  # where the cut fails too, the next append makes it first
            with suppress(OSError):
                files.truncate(newest.path, newest.size, disk=self._disk)
            raise
        newest.size += len(data)

    def _redact(self, segment: Segment, replacement: Callable[[LogRecord], bytes | None]) -> int:
        with self._lock:
            if self._is_dropped(segment):
                return 0
            new = {}
            for frame in records(segment, lambda _: True):
                head = replacement(LogRecord.of(frame))
                if head is not None and (head != frame.head or frame.body_bytes):
                    new[frame.sequence] = head
            if new:
                self.close()
                self._place = None
                rewrite(segment, new, self._disk)
            return len(new)

    def _locate(self, sequence: int) -> tuple[Segment, int]:
        """Return the segment of a record, and the offset of a frame at or before it there."""
        if self._place is not None and self._place[0] == sequence:
            segment, offset = self._place[1:]
            if offset < segment.size and not self._is_dropped(segment):
                return segment, offset
        return self._segments[max(0, self._count_to(sequence) - 1)], 0

    def _segments_from(self, start: int) -> list[Segment]:
        """Return the segments that may have records from number `start` on, as they are now."""
        with self._lock:
            return self._segments[max(0, self._count_to(start) - 1) :] if start < self._end else []

    def _first_behind(self, segment: Segment) -> int:
        """Return the number of the first record behind a segment."""
        behind = self._count_to(segment.first)
        return self._segments[behind].first if behind < len(self._segments) else self._end

    def _count_to(self, sequence: int) -> int:
        """Return how many segments begin with a record of this number or a smaller one."""
        return bisect_right(self._segments, sequence, key=lambda each: each.first)

    def _is_dropped(self, segment: Segment) -> bool:
        """Return whether a segment that was there is so no more; the oldest go first."""
        return segment.first < self._segments[0].first

    def _with_body(self, segment: Segment, frame: LogFrame) -> LogRecord:
        """Return the record with its body; without one where it was dropped or redacted meanwhile."""
        with self._lock, suppress(FileNotFoundError), segment.path.open("rb") as file:
            if read_frame(file, frame.offset) == frame:
                return LogRecord.of(frame, read_body(file, frame))
        return LogRecord.of(frame)

    def _path(self, first: int) -> Path:
        return self._folder / f"{first:020}{SEGMENT_SUFFIX}"
