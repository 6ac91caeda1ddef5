"""One file of an append-only log: frames with length, number and checksums, synced in groups."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from streamcl.errors import StreamclError
from streamcl.storage import files

SEGMENT_SUFFIX = ".segment"
FIELDS = struct.Struct("<2sBQdIII")  # mark, flags, sequence, time, bytes of head and body, checksum of body
CHECKSUM = struct.Struct("<I")  # CRC-32 of the fields and the head
START = FIELDS.size + CHECKSUM.size
MARK = b"sf"
NOTE = 1  # bit of the flags: the frame is no record, but the end of a group, or the beginning of a segment
MAX_HEAD = 64 * 2**20  # bytes; more is damage, which must not be taken for a length


class DamagedLog(StreamclError):
    """A segment of a log that was synced cannot be read any more."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class LogFrame:
    """One frame without its body.

    offset: of its first byte in the file. sequence: number of the record in the log; of a note, that of the
    next record. time: seconds since the epoch when it was appended. body_bytes, body_checksum: of the body,
    which lies behind the head.
    """

    offset: int
    flags: int
    sequence: int
    time: float
    head: bytes
    body_bytes: int
    body_checksum: int

    @property
    def is_note(self) -> bool:
        """Whether it is a note, and no record."""
        return bool(self.flags & NOTE)

    @property
    def body_offset(self) -> int:
        """The offset of the body's first byte."""
        return self.offset + START + len(self.head)

    @property
    def end(self) -> int:
        """The offset of the first byte behind the frame."""
        return self.body_offset + self.body_bytes


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One record of the log.

    sequence: its number, from 0, without gaps. time: seconds since the epoch when it was appended. head and
    body: as they were appended; body is None where it is damaged, or was not asked for.
    """

    sequence: int
    time: float
    head: bytes
    body: bytes | None = None

    @classmethod
    def of(cls, frame: LogFrame, body: bytes | None = None) -> LogRecord:
        """Return the record in a frame."""
        return cls(frame.sequence, frame.time, frame.head, body)


@dataclass(slots=True, eq=False)
class Segment:
    """A file of the log.

    first: number of its first record. size: its synced bytes. began, newest: the times of its beginning and
    of its last group, in seconds since the epoch.
    """

    path: Path
    first: int
    size: int
    began: float
    newest: float

    @classmethod
    def of(cls, path: Path) -> Segment:
        """Return the description of a file. Raise DamagedLog where its first frame cannot be read."""
        _, frame = next(frames(path, 0, path.stat().st_size), (None, None))
        if frame is None:
            raise _damaged(path, 0)
        return cls(path, frame.sequence, path.stat().st_size, frame.time, frame.time)


def encode_frame(flags: int, sequence: int, time: float, head: bytes, body: bytes) -> bytes:
    """Return the bytes of a frame. Raise ValueError where the head has more than MAX_HEAD bytes."""
    if len(head) > MAX_HEAD:
        raise ValueError(f"a head of {len(head)} bytes; {MAX_HEAD} are allowed")
    fields = FIELDS.pack(MARK, flags, sequence, time, len(head), len(body), zlib.crc32(body))
    return b"".join((fields, CHECKSUM.pack(zlib.crc32(head, zlib.crc32(fields))), head, body))


def read_frame(file: BinaryIO, offset: int) -> LogFrame | None:
    """Return the frame at an offset; None where there is none, or its head is damaged."""
    file.seek(offset)
    start = file.read(START)
    if len(start) < START:
        return None
    mark, flags, sequence, time, head_bytes, body_bytes, body_checksum = FIELDS.unpack_from(start)
    if mark != MARK or head_bytes > MAX_HEAD:
        return None
    head = file.read(head_bytes)
    checksum = zlib.crc32(head, zlib.crc32(start[: FIELDS.size]))
    if len(head) < head_bytes or CHECKSUM.unpack_from(start, FIELDS.size) != (checksum,):
        return None
    return LogFrame(offset, flags, sequence, time, head, body_bytes, body_checksum)


def read_body(file: BinaryIO, frame: LogFrame) -> bytes | None:
    """Return the body of a frame; None where it is cut short or damaged."""
    file.seek(frame.body_offset)
    body = file.read(frame.body_bytes)
    return body if len(body) == frame.body_bytes and zlib.crc32(body) == frame.body_checksum else None


def frames(path: Path, start: int, end: int) -> Iterator[tuple[BinaryIO, LogFrame]]:
    """Yield the open file and each frame between two offsets, which are those of frames.

    Raise DamagedLog where a frame cannot be read; a body that is damaged is found by `read_body` alone.
    """
    with path.open("rb") as file:
        while start < end:
            if (frame := read_frame(file, start)) is None or frame.end > end:
                raise _damaged(path, start)
            yield file, frame
            start = frame.end


def last_group(path: Path) -> LogFrame:
    """Return the note that ends the last group which is in the file as it was synced.

    What comes behind it was never acknowledged: a crash left it. A group with a damaged body counts where
    another follows, since only the last one can be unfinished.

    Raise DamagedLog where the file is damaged before its last group: nothing is cut off then.
    """
    last, is_damaged = None, False
    with path.open("rb") as file:
        frame, end = read_frame(file, 0), 0
        while frame is not None:
            is_damaged = is_damaged or read_body(file, frame) is None
            if frame.is_note and not is_damaged:
                last = frame
            is_damaged = is_damaged and not frame.is_note
            end = frame.end
            frame = read_frame(file, end)
        if last is None or _count_notes(file, end) > 1:
            raise _damaged(path, end)
    return last


def rewrite(segment: Segment, heads: Mapping[int, bytes], disk: files.Disk) -> None:
    """Replace the file by one in which the records with these numbers have these heads, and no bodies."""
    size = 0
    try:
        with files.replace_content(segment.path, disk=disk) as new:
            for file, frame in frames(segment.path, 0, segment.size):
                data = _copied(file, frame, None if frame.is_note else heads.get(frame.sequence))
                files.write_all(new, data, disk=disk)
                size += len(data)
    except OSError:
        if segment.path.stat().st_size == size:  # only the sync of the folder has failed
            segment.size = size
        raise
    segment.size = size


def records(segment: Segment, wanted: Callable[[LogFrame], bool]) -> list[LogFrame]:
    """Return the frames of the segment's records that `wanted` accepts."""
    found = (frame for _, frame in frames(segment.path, 0, segment.size) if not frame.is_note)
    return [frame for frame in found if wanted(frame)]


def _copied(file: BinaryIO, frame: LogFrame, head: bytes | None) -> bytes:
    """Return the bytes of a frame as they are, damaged ones included; with another head, and no body."""
    if head is not None:
        return encode_frame(frame.flags, frame.sequence, frame.time, head, b"")
    file.seek(frame.offset)
    return file.read(frame.end - frame.offset)


def _count_notes(file: BinaryIO, start: int) -> int:
    """Return how many notes lie behind an offset at which no frame can be read."""
    file.seek(start)
    tail, place, found = file.read(), -1, 0
    while (place := tail.find(MARK, place + 1)) >= 0:
        frame = read_frame(file, start + place)
        found += frame is not None and frame.is_note
    return found


def _damaged(path: Path, offset: int) -> DamagedLog:
    hint = "restore the file from a copy; without it the records in it are lost"
    return DamagedLog(f"{path} is damaged at byte {offset}", hint=hint)
