"""The run's own record: one JSON Lines file a topic, cut back to the last commit after a crash."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from streamcl.errors import CheckpointError
from streamcl.protocols import State
from streamcl.sinks.redaction import NoteCount, RedactionTarget, count_unnoted
from streamcl.storage import files
from streamcl.storage.json_lines import json_object

TOPICS = ("predictions", "metrics", "events", "quarantine")
BUFFER_BYTES = 1 << 16
"""Bytes kept in memory for a topic before they are written."""
MAX_LOG_LINE_BYTES = 1 << 22
"""Bytes of a line that are read at once; a record has some hundred."""
REWRITTEN = 1 << 20
"""Bytes of a file that are read, or of a redacted one written, at a time."""


class JsonlSink:
    """Writes `<folder>/<topic>.jsonl`, UTF-8, one object a line; NaN and infinity become null.

    A disk error is raised as OSError by `write` or `flush`; what was not yet written is kept, and written
    once by the next call. After `flush` the files survive a power loss. `load_state_dict` cuts them back, so
    that the files of a resumed run equal an uninterrupted one's.
    """

    def __init__(
        self, folder: Path, topics: Sequence[str] = TOPICS, *, disk: files.Disk = files.DISK
    ) -> None:
        self._disk = disk
        self._paths = {topic: folder / f"{topic}.jsonl" for topic in topics}
        files.make_folder(folder, disk=disk)
        self._handles: dict[str, io.FileIO] = {}
        self._waiting = {topic: bytearray() for topic in topics}
        self._sizes = {topic: self._size(topic) for topic in topics}  # in bytes, as of the last flush
        self._given = {topic: _count_lines(path) for topic, path in self._paths.items()}
        self._flushed = dict(self._given)

    def write(self, topic: str, record: Mapping[str, Any]) -> None:
        """Append one record. Raise ValueError where the topic is unknown."""
        if topic not in self._paths:
            raise ValueError(f"unknown topic {topic!r}; this sink writes {', '.join(self._paths)}")
        waiting = self._waiting[topic]
        waiting += line(record)
        self._given[topic] += 1
        if len(waiting) >= BUFFER_BYTES:
            self._drain(topic)

    def flush(self) -> None:
        """Write and fsync every topic; the position moves only where that succeeded."""
        for topic in self._paths:
            self._drain(topic)
        for topic, handle in self._handles.items():
            if (size := self._size(topic)) != self._sizes[topic]:
                self._disk.fsync(handle)
                self._sizes[topic], self._flushed[topic] = size, self._given[topic]

    def close(self) -> None:
        """Flush and close the files; they are closed even where the flush fails."""
        try:
            self.flush()
        finally:
            self._close_files()

    def state_dict(self) -> State:
        """Return the lines of each topic's file after the last flush: their lengths change in an erasure."""
        return dict(self._flushed)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Cut files back to their lines in `state`. Raise CheckpointError, cutting none, if one is short."""
        self._close_files()
        counts = {topic: int(state.get(topic, 0)) for topic in self._paths}
        ends = {topic: _end_of(self._paths[topic], count) for topic, count in counts.items()}
        for topic, end in ends.items():
            if end is None:
                found = _count_lines(self._paths[topic])
                raise CheckpointError(
                    f"{self._paths[topic]} has {found} lines, the checkpoint expects {counts[topic]}",
                    hint="the file was shortened since; restore it, or start over in another run directory",
                )
        for topic, end in ends.items():
            if self._paths[topic].exists():
                files.truncate(self._paths[topic], end or 0, disk=self._disk)
        self._sizes = {topic: end or 0 for topic, end in ends.items()}
        self._given, self._flushed = dict(counts), counts

    def redact(self, target: RedactionTarget, note: NoteCount = count_unnoted) -> int:
        """Take a target out of every file, those of earlier processes too; return how many lines changed.

        Lines stay in their places, and nothing of what they held, nor how long they were. A crash leaves each
        file with its old content or its new; how many lines of it change is noted before.
        """
        self.flush()
        self._close_files()
        paths = [path for path in self._paths.values() if path.exists()]
        changed = sum(_rewrite(path, target, note, disk=self._disk) for path in paths)
        self._sizes = {topic: self._size(topic) for topic in self._paths}
        return changed

    def _close_files(self) -> None:
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()
        for waiting in self._waiting.values():
            waiting.clear()

    def _drain(self, topic: str) -> None:
        waiting = self._waiting[topic]
        if waiting and topic not in self._handles:
            self._handles[topic] = files.open_append(self._paths[topic], disk=self._disk)
        while waiting:
            taken = self._disk.write(self._handles[topic], bytes(waiting[:BUFFER_BYTES]))
            del waiting[:taken]

    def _size(self, topic: str) -> int:
        path = self._paths[topic]
        return path.stat().st_size if path.exists() else 0


def logged_ids(folder: Path) -> Iterator[tuple[int | None, str]]:
    """Yield every sample id in the JSON Lines of a folder, with its offset."""
    for path in sorted(folder.glob("*.jsonl")):
        yield from ids_in(path)


def ids_in(path: Path) -> Iterator[tuple[int | None, str]]:
    """Yield every sample id in a file of JSON Lines, with its offset; of any other file none."""
    with path.open("rb") as log:
        for each in iter(lambda: log.readline(MAX_LOG_LINE_BYTES), b""):
            record = json_object(each) or {}
            if isinstance(name := record.get("id"), str):
                yield record.get("offset"), name


def _rewrite(path: Path, target: RedactionTarget, note: NoteCount, *, disk: files.Disk) -> int:
    """Redact one file atomically; return how many lines changed. Nothing is written where none does."""
    with path.open("rb") as log:
        begins = _first_change(log, target)
        if begins is None:
            return note(path.name, 0)
        changed = 0
        with files.replace_content(path, disk=disk) as handle:
            log.seek(0)
            while rest := begins - log.tell():
                files.write_all(handle, log.read(min(rest, REWRITTEN)), disk=disk)
            waiting = bytearray()
            for old, new in _redacted(log, target):
                changed += old != new
                waiting += new
                if len(waiting) >= REWRITTEN:
                    files.write_all(handle, bytes(waiting), disk=disk)
                    waiting = bytearray()
            files.write_all(handle, bytes(waiting), disk=disk)
            changed = note(path.name, changed)
    return changed


def _first_change(log: BinaryIO, target: RedactionTarget) -> int | None:
    """Return where the first line begins that redaction changes; None where there is none."""
    begins = 0
    for old, new in _redacted(log, target):
        if old != new:
            return begins
        begins += len(old)
    return None


def _redacted(log: BinaryIO, target: RedactionTarget) -> Iterator[tuple[bytes, bytes]]:
    """Yield each further line before and after redaction; one that cannot be parsed stays."""
    for old in log:
        record = json_object(old)
        new = None if record is None else target.redact(record)
        yield old, old if new is None else line(new)


def _count_lines(path: Path) -> int:
    """Return how many whole lines a file has; 0 where there is none."""
    return sum(chunk.count(b"\n") for chunk in _chunks(path))


def _end_of(path: Path, count: int) -> int | None:
    """Return where the first so many lines of a file end, in bytes; None where it has fewer."""
    start = 0
    for chunk in _chunks(path) if count else ():
        if (found := chunk.count(b"\n")) >= count:
            end = -1
            for _ in range(count):
                end = chunk.index(b"\n", end + 1)
            return start + end + 1
        count, start = count - found, start + len(chunk)
    return None if count else 0


def _chunks(path: Path) -> Iterator[bytes]:
    if path.exists():
        with path.open("rb") as log:
            yield from iter(lambda: log.read(REWRITTEN), b"")


def line(record: Mapping[str, Any]) -> bytes:
    """Return one record as a line of strict JSON in UTF-8; a number that JSON does not have becomes null.

    >>> line({"step": 1, "loss": float("nan")})
    b'{"step": 1, "loss": null}\\n'
    """
    try:
        text = json.dumps(record, allow_nan=False, ensure_ascii=False, default=_plain)
        return text.encode() + b"\n"
    except ValueError:  # a number that JSON does not have, or half of a surrogate pair in a name
        return json.dumps(_finite(record), allow_nan=False).encode() + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a record holds a {type(value).__name__}; records are plain JSON values")


def _finite(value: Any) -> Any:
    """Return the same value with None for every number that is not finite."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return _finite(_plain(value))
