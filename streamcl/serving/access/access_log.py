"""The log of who asked a server for what: no images, labels or names of samples, and bounded in size."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

ACCESS_LOG, EARLIER_ACCESS_LOG = "access.jsonl", "access.1.jsonl"
MAX_LOG_BYTES = 8 << 20
"""Of each of the two files; a line has some 150."""
COUNTED_SECONDS = 60
MAX_COUNTED = 10_000
"""Kinds of requests that are counted at a time, so that many addresses do not fill the memory."""


@dataclass(frozen=True, slots=True)
class AccessEntry:
    """A kind of request: by whom, for which route, and how it was answered.

    token: its name; None without one. role: None without one. route: a pattern, never a path.
    """

    token: str | None
    role: str | None
    address: str
    route: str
    status: int


class AccessLog:
    """Writes a line for the first request of a kind at once, and one that counts the others of that minute.

    A request to forget, and a receipt that is read, has a line of its own with the request's id. When the
    file is full it takes the place of the earlier one. Whatever the disk refuses is missing, and the
    server's log says so.
    """

    def __init__(
        self, path: Path, *, max_bytes: int = MAX_LOG_BYTES, clock: Callable[[], float] = time.time
    ) -> None:
        self._path, self._max_bytes, self._clock = path, max_bytes, clock
        self._counted: Counter[AccessEntry] = Counter()
        self._since = 0.0

    def note(self, entry: AccessEntry, request: str | None = None) -> None:
        """Log a request that was answered. request: the id of the request to forget that it was about."""
        now = self._clock()
        if not 0 <= now - self._since < COUNTED_SECONDS or len(self._counted) >= MAX_COUNTED:
            self.flush()
            self._since = now
        if request is not None:
            self._write(now, entry, 1, request)
        elif entry in self._counted:
            self._counted[entry] += 1
        else:
            self._counted[entry] = 0
            self._write(now, entry, 1)

    def flush(self) -> None:
        """Write the counts."""
        now = self._clock()
        for entry, count in self._counted.items():
            if count:
                self._write(now, entry, count)
        self._counted.clear()

    def _write(self, now: float, entry: AccessEntry, count: int, request: str | None = None) -> None:
        fields = {"time": round(now, 3), **asdict(entry), "count": count}
        if request is not None:
            fields["request"] = request
        line = json.dumps(fields).encode() + b"\n"
        try:
            log = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(log, line)
                size = os.fstat(log).st_size
            finally:
                os.close(log)
            if size > self._max_bytes:
                self._path.replace(self._path.with_name(EARLIER_ACCESS_LOG))
        except OSError as error:
            logger.warning("a request is missing in %s: %s", self._path.name, error.strerror)
