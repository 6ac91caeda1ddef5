"""Watches a folder into which images are written, for as long as the run lasts."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from streamcl.errors import BadRecord, ConfigError, SourceError
from streamcl.protocols import State
from streamcl.sources.delivery import DeliveryGuarantee
from streamcl.sources.live_reader import Arrival, RecordKey

logger = logging.getLogger(__name__)

BLOCK = 4096  # entries of the position that are frozen together, so that a state copies few
SHARE = 0.1  # of the time at most is spent on scanning
READ_AT_ONCE = 64  # files, so that few are in memory


class _File(NamedTuple):
    """A file as a scan finds it: its path below the root, its size in bytes, its time in nanoseconds."""

    path: str
    size: int
    mtime: int


class FolderReader:
    """The image files of a folder, each once, as they become complete; in the order of their times.

    The position is the set of files taken, so names and times may come in any order. A file is complete when
    two scans find it with the same size and time. Files that cannot be opened yet are left for later; hidden
    ones, and those without an image's ending, are not looked at. Notifications of the system are not used:
    they overflow and are lost, and a scan is the truth.

    Args:
        root: the folder.
        layout: "flat": images without labels; "classes": <class>/**/*; "domains": <domain>/<class>/**/*.
        interval: seconds between two scans; longer where a scan takes longer than a tenth of it.
        replaced: a file that was taken and has another content now is a "new_record" with its time in its id,
            or is left out ("skip"), or ends the run ("fail").
        name: of the stream.
        clock: returns the time in seconds.
        sleep: waits that many seconds.
    """

    def __init__(
        self,
        root: str | Path,
        layout: Literal["flat", "classes", "domains"] = "classes",
        interval: float = 1.0,
        replaced: Literal["new_record", "skip", "fail"] = "new_record",
        name: str | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._root, self._depth = Path(root), {"flat": 0, "classes": 1, "domains": 2}[layout]
        if not self._root.is_dir():
            raise ConfigError(
                f"{self._root} is not a folder", hint="make it first; images are awaited in it as they come"
            )
        self.name = name or self._root.resolve().name or "folder"
        self._interval, self._replaced = interval, replaced
        self._clock, self._sleep = clock, sleep
        self._endings = frozenset(Image.registered_extensions())
        self._salt = hashlib.sha256(self.name.encode(errors="surrogatepass")).digest()
        self.open(None)

    @property
    def guarantee(self) -> DeliveryGuarantee:
        """Exactly once, as the position is the set of files taken."""
        return DeliveryGuarantee("exactly_once", "while files stay until a checkpoint has passed them")

    def open(self, position: State | None) -> None:
        """Continue after the files of `position`."""
        self._taken = _TakenFiles(position or {})
        self._ready = deque[_File]()  # complete, and not yet returned
        self._offered = dict[str, _File]()  # complete, and not yet taken
        self._unfinished = dict[str, _File]()  # as the scan before found them
        self._next_scan, self._waiting_files = 0.0, 0

    def poll(self, timeout: float) -> Sequence[Arrival]:
        """Return some of the files that have become complete; wait for the next scan where none has."""
        if not self._ready:
            if self._clock() < self._next_scan:
                self._sleep(min(timeout, self._next_scan - self._clock()))
                if self._clock() < self._next_scan:
                    return ()
            began = self._clock()
            self._ready.extend(self._complete_files())
            took = self._clock() - began
            self._next_scan = self._clock() + max(self._interval, took / SHARE)
        count = min(READ_AT_ONCE, len(self._ready))
        return [self._arrival(self._ready.popleft()) for _ in range(count)]

    def replay(self, keys: Sequence[RecordKey]) -> Sequence[Arrival]:
        """Return the records of these files; one that is gone or has another content is a BadRecord."""
        return [self._arrival(_File(*key)) for key in keys]

    def advance(self, keys: Sequence[RecordKey]) -> None:
        """Add files to the set of those taken."""
        for key in keys:
            file = _File(*key)
            self._taken.add(*self._digests(file))
            self._offered.pop(file.path, None)

    def position(self) -> State:
        """Return digests of the files taken: 16 bytes each."""
        return self._taken.state()

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        """Nothing is told to a folder."""

    def fetch(self, ids: Sequence[str]) -> Mapping[str, Any]:
        """Return the records whose files still have the content that was learned."""
        found: dict[str, Any] = {}
        for name in ids:
            path, _, stamp = name.partition("@")
            file = self._stat(path)
            if file is None or (stamp and stamp != str(file.mtime)):
                continue
            if self._taken.content(self._digests(file)[0]) == self._digests(file)[1]:
                found[name] = self._record(file)
        return found

    def lag(self) -> int:
        """Return how many files the last scan found that are not learned."""
        return self._waiting_files

    def close(self) -> None:
        """Nothing is open between scans."""

    def _complete_files(self) -> list[_File]:
        """Return complete files that are neither taken nor offered, by time, then by path."""
        found, unfinished = list[_File](), dict[str, _File]()
        for file in self._scan():
            if self._offered.get(file.path) == file or not self._wanted(file):
                continue
            if self._unfinished.get(file.path) == file and file.size > 0:
                found.append(file)
            else:
                unfinished[file.path] = file
        self._unfinished = unfinished
        found.sort(key=lambda file: (file.mtime, file.path))
        self._offered |= {file.path: file for file in found}
        self._waiting_files = len(self._offered) + len(unfinished)
        return found

    def _wanted(self, file: _File) -> bool:
        """Return whether a file is new, or taken with another content and to be taken again."""
        path, content = self._digests(file)
        taken = self._taken.content(path)
        if taken is None or taken == content:
            return taken is None
        if self._replaced == "fail":
            raise SourceError(
                f"{self.name}: {file.path} was learned and has another content now",
                hint="replaced: new_record learns it too, replaced: skip leaves it out",
            )
        return self._replaced == "new_record"

    def _scan(self) -> Iterator[_File]:
        """Yield every image file below the root, at the layout's depth or deeper."""
        if not self._root.is_dir():
            raise SourceError(f"{self._root} is gone", hint="bring it back; the same command continues")
        for folder, folders, names in os.walk(self._root):
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            relative = Path(folder).relative_to(self._root)
            if len(relative.parts) < self._depth:
                continue
            for name in names:
                if name.startswith(".") or os.path.splitext(name)[1].lower() not in self._endings:  # noqa: PTH122
                    continue
                if (file := self._stat((relative / name).as_posix())) is not None:
                    yield file

    def _stat(self, path: str) -> _File | None:
        try:
            found = (self._root / path).stat()
        except (OSError, ValueError):  # removed meanwhile, or no path at all
            return None
        return _File(path, found.st_size, found.st_mtime_ns)

    def _arrival(self, file: _File) -> Arrival:
        return Arrival(self._record(file), list(file))

    def _record(self, file: _File) -> Any:
        """Return the record of a file; a BadRecord where it is gone or has another content by now."""
        try:
            data = (self._root / file.path).read_bytes()
        except OSError as error:
            return BadRecord(f"{file.path} could not be read: {error.strerror}")
        if self._stat(file.path) != file:
            return BadRecord(f"{file.path} was replaced before it could be read")
        parts = Path(file.path).parts
        known = self._taken.content(self._digests(file)[0])
        again = known is not None and known != self._digests(file)[1]
        return {
            "image": data,
            "label": parts[self._depth - 1] if self._depth else None,
            "domain": parts[0] if self._depth == 2 else None,
            "id": f"{file.path}@{file.mtime}" if again else file.path,
        }

    def _digests(self, file: _File) -> tuple[int, int]:
        """Return 64-bit digests of the path, and of size and time."""
        path = file.path.encode(errors="surrogatepass")
        content = f"{file.size} {file.mtime}".encode()
        return self._digest(path), self._digest(content)

    def _digest(self, data: bytes) -> int:
        return int.from_bytes(hashlib.blake2b(data, key=self._salt, digest_size=8).digest(), "big")


class _TakenFiles:
    """The files taken, as digests of path and content; a state shares all but its last few entries."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self._blocks: list[npt.NDArray[np.uint64]] = [
            np.asarray(state[name], np.uint64) for name in sorted(state)
        ]
        rows = [row for block in self._blocks for row in block.tolist()]
        self._content: dict[int, int] = dict(rows)
        self._tail: list[tuple[int, int]] = []

    def content(self, path: int) -> int | None:
        """Return the digest of the content that was taken under a path; None where none was."""
        return self._content.get(path)

    def add(self, path: int, content: int) -> None:
        self._content[path] = content
        self._tail.append((path, content))
        if len(self._tail) == BLOCK:
            self._blocks.append(np.array(self._tail, np.uint64))
            self._tail = []

    def state(self) -> State:
        """Return the entries as arrays uint64 [n, 2]."""
        tail = [np.array(self._tail, np.uint64)] if self._tail else []
        return {f"{index:09}": block for index, block in enumerate([*self._blocks, *tail])}
