"""TensorBoard's event files, and how erased names leave them."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from streamcl.storage import files

TENSORBOARD = "tensorboard"
"""The name of their folder in a run directory."""

EVENT_FILES = "events.out.tfevents.*"


def redact_event_files(folder: Path, parts: Collection[str], *, disk: files.Disk = files.DISK) -> int:
    """Take the figures of held-out parts out of every event file in a folder; return how many files changed.

    A file that names none of them stays as it is. Where the package tensorboard is missing, or a file is
    damaged, a file that names one is removed. No process may be writing to the files.
    """
    named = event_files_with(folder, parts)
    for path in named:
        content = _without(path.read_bytes(), parts)
        if content is None or _names_any(content, parts):
            files.remove(path, disk=disk)
        else:
            files.atomic_write(path, content, disk=disk)
    return len(named)


def event_files_with(folder: Path, parts: Collection[str]) -> list[Path]:
    """Return the event files in a folder that name any of these held-out parts."""
    return [path for path in sorted(folder.glob(EVENT_FILES)) if _names_any(path.read_bytes(), parts)]


def _names_any(content: bytes, parts: Collection[str]) -> bool:
    return any(f"/{part}".encode(errors="surrogatepass") in content for part in parts)


def _without(content: bytes, parts: Collection[str]) -> bytes | None:
    """Return the content of a file without these parts; None where it cannot be read."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
    except ImportError:
        return None
    written = io.BytesIO()
    writer = RecordWriter(written)
    try:
        for record in _records(content):
            event = Event.FromString(record)
            writer.write(record if not _drop_values(event, parts) else event.SerializeToString())
    except Exception:  # whatever protobuf raises for bytes that are no event
        return None
    return written.getvalue()


def _drop_values(event: Any, parts: Collection[str]) -> bool:
    """Drop the scalars named kind/figure/part of these parts; return whether there were any."""
    kept = [value for value in event.summary.value if value.tag.split("/", 2)[-1] not in parts]
    if len(kept) == len(event.summary.value):
        return False
    values = [type(value).FromString(value.SerializeToString()) for value in kept]
    del event.summary.value[:]
    event.summary.value.extend(values)
    return True


def _records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a file: each is a length of 8 bytes, 4 of check sum, the bytes, 4 of check sum.

    What a crash left of a last one is no record.
    """
    start = 0
    while start + 12 <= len(content):
        length = int.from_bytes(content[start : start + 8], "little")
        record = content[start + 12 : start + 12 + length]
        start += 16 + length
        if start > len(content):
            return
        yield record
