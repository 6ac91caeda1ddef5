"""The part that readers of growing listings share: each file once, whatever the order of names and times."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Literal

from streamcl.errors import BadRecord, SourceError, cause_of
from streamcl.protocols import State
from streamcl.sources.delivery import DeliveryGuarantee
from streamcl.sources.live_reader import Arrival, RecordKey
from streams.live.files.taken_files import ListedFile, TakenFiles
from streams.user.images import image_suffixes
from streams.user.records import RecordPolicy

logger = logging.getLogger(__name__)

MAX_LISTING_SHARE = 0.1  # of the time at most is spent on listing
READ_AT_ONCE = 64  # files, so that few are in memory
MAX_RETRY_DELAY = 60.0  # seconds between two attempts while the other end fails
READ_ATTEMPTS = 5  # to read records again that were learned before

PathLayout = Literal["flat", "classes", "domains"]
Replaced = Literal["new_record", "skip", "fail"]


class ListingReader:
    """Reads the files of a listing that grows; a subclass lists them and reads their contents.

    The position is the set of files taken, so names and times may come in any order. While listing or
    reading fails with an OSError, it waits, longer each time, and brings nothing.

    Args:
        name: of the stream.
        layout: "flat": images without labels; "classes": <class>/**/*; "domains": <domain>/<class>/**/*.
        interval: seconds between two listings; longer where one takes longer than a tenth of it.
        replaced: a file that was taken and has another content now is a "new_record" with its version in its
            id, or is left out ("skip"), or ends the run ("fail").
        clock: returns the time in seconds.
        sleep: waits that many seconds.
        policy: limits; a file above `max_file_bytes` is a bad record, and is not read.
    """

    delivery = DeliveryGuarantee("exactly_once", "while files stay until a checkpoint has passed them")

    def __init__(
        self,
        name: str,
        *,
        layout: PathLayout,
        interval: float,
        replaced: Replaced,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        policy: RecordPolicy | None,
    ) -> None:
        self.name, self.depth = name, {"flat": 0, "classes": 1, "domains": 2}[layout]
        self._interval, self._replaced = interval, replaced
        self._clock, self._sleep = clock, sleep
        self._limits = policy or RecordPolicy()
        self.open(None)

    def _listing(self) -> Iterable[ListedFile]:
        """Return the files that are there now, those to be read first in front."""
        raise NotImplementedError

    def _stat(self, path: str) -> ListedFile | None:
        """Return the file of that path as it is now; None where there is none."""
        raise NotImplementedError

    def _contents(self, files: Sequence[ListedFile]) -> Sequence[bytes | BadRecord]:
        """Return the contents of the files; a BadRecord for one that is gone or was replaced since."""
        raise NotImplementedError

    def _is_complete(self, file: ListedFile) -> bool:
        """Return whether a file that was listed can no longer grow; otherwise two listings must agree."""
        return self._unfinished.get(file.path) == file and file.size > 0

    @property
    def guarantee(self) -> DeliveryGuarantee:
        """Exactly once, as the position is the set of files taken."""
        return self.delivery

    @property
    def stored_at(self) -> str:
        """The folder or bucket, which holds its files until somebody removes them."""
        return f"{self.name} holds its files until somebody removes them"

    def open(self, position: State | None) -> None:
        """Continue after the files of `position`."""
        self._taken = TakenFiles(self.name, position or {})
        self._ready = deque[ListedFile]()  # complete, and not yet returned
        self._offered = dict[str, ListedFile]()  # complete, and not yet taken
        self._returned = set[str]()  # the paths of those that `poll` returned
        self._unfinished = dict[str, ListedFile]()  # as the listing before found them
        self._next_listing, self._delay, self._waiting_files = 0.0, 0.0, 0

    def poll(self, timeout: float) -> Sequence[Arrival]:
        """Return some of the files that have become complete; wait for the next listing where none has."""
        now = self._clock()
        if now < self._next_listing and (self._delay or not self._ready):
            self._sleep(min(timeout, self._next_listing - now))
            if self._clock() < self._next_listing:
                return ()
        try:
            if not self._ready:
                self._list()
            found = self._arrivals()
        except OSError as error:
            self._back_off(error)
            return ()
        if self._delay:
            logger.info("%s: answers again", self.name)
            self._delay = 0.0
        return found

    def replay(self, keys: Sequence[RecordKey]) -> Sequence[Arrival]:
        """Return the records of these files; one that is gone or has another content is a BadRecord."""
        files = [ListedFile(*key[:3]) for key in keys]
        return [
            Arrival(self._record(file, content, again=key[3]), key)
            for key, file, content in zip(keys, files, self._read_again(files), strict=True)
        ]

    def advance(self, keys: Sequence[RecordKey]) -> None:
        """Add files to the set of those taken."""
        for key in keys:
            file = ListedFile(*key[:3])
            self._taken.add(file)
            self._offered.pop(file.path, None)
            self._returned.discard(file.path)

    def position(self) -> State:
        """Return digests of the files taken: 16 bytes each."""
        return self._taken.state()

    def acknowledge(self, position: Mapping[str, Any]) -> None:
        """Do nothing: a listing takes no commits."""

    def fetch(self, ids: Sequence[str]) -> Generator[tuple[str, Any], None, None]:
        """Yield the records whose files still have the content that was learned."""
        files = {name: file for name in ids if (file := self._learned(name)) is not None}
        contents = self._read_again(list(files.values()))
        for (name, file), content in zip(files.items(), contents, strict=True):
            if not isinstance(content, BadRecord):
                yield name, self._record(file, content, again=name != file.path)

    def lag(self) -> int:
        """Return how many files the last listing found that are not learned."""
        return self._waiting_files

    def close(self) -> None:
        """Do nothing: nothing is open between two listings."""

    def accepts(self, path: str) -> bool:
        """Return whether a path is an image at the layout's depth or deeper, no part of it hidden.

        >>> from streams.live.files.folder import FolderReader
        >>> reader = FolderReader(".", layout="classes")
        >>> [reader.accepts(path) for path in ("cat/a.PNG", "a.png", "cat/.a.png", ".git/a.png", "cat/a.txt")]
        [True, False, False, False, False]
        """
        parts = path.split("/")
        if len(parts) <= self.depth or any(part.startswith(".") for part in parts):
            return False
        return os.path.splitext(parts[-1])[1].lower() in image_suffixes()  # noqa: PTH122 - faster than a Path

    def _list(self) -> None:
        """List the files, and let those that are complete and new be read."""
        began = self._clock()
        self._ready.extend(self._complete_files())
        took = self._clock() - began
        self._next_listing = self._clock() + max(self._interval, took / MAX_LISTING_SHARE)

    def _arrivals(self) -> Sequence[Arrival]:
        """Return records of the first files that are ready, which stay ready where reading them fails."""
        files = [self._ready[index] for index in range(min(READ_AT_ONCE, len(self._ready)))]
        contents = self._limited_contents(files)
        found = list[Arrival]()
        for file, content in zip(files, contents, strict=True):
            self._ready.popleft()
            again = file.path in self._returned or self._taken.compare(file) != "new"
            self._returned.add(file.path)
            found.append(Arrival(self._record(file, content, again=again), [*file, again]))
        return found

    def _read_again(self, files: Sequence[ListedFile]) -> Sequence[bytes | BadRecord]:
        """Return contents that must be had now. Raise SourceError where several attempts fail."""
        for attempt in range(READ_ATTEMPTS - 1):
            try:
                return self._limited_contents(files)
            except OSError:
                self._sleep(self._interval * 2**attempt)
        try:
            return self._limited_contents(files)
        except OSError as error:
            raise SourceError(
                f"{self.name}: records cannot be read again: {cause_of(error)}",
                hint="the same command continues once they can be read",
            ) from error

    def _limited_contents(self, files: Sequence[ListedFile]) -> Sequence[bytes | BadRecord]:
        """Return the contents of those files that are not too large; of the others a BadRecord."""
        too_large = dict[ListedFile, BadRecord]()
        for file in files:
            try:
                self._limits.check_file(file.path, file.size)
            except BadRecord as bad:
                too_large[file] = bad
        contents = iter(self._contents([file for file in files if file not in too_large]))
        return [too_large.get(file) or next(contents) for file in files]

    def _back_off(self, error: OSError) -> None:
        """Wait twice as long as the last time before the next attempt."""
        if self._delay < MAX_RETRY_DELAY:
            self._delay = min(MAX_RETRY_DELAY, max(self._interval, 2 * self._delay))
            logger.warning("%s: %s; next attempt in %g s", self.name, cause_of(error), self._delay)
        self._next_listing = self._clock() + self._delay

    def _complete_files(self) -> list[ListedFile]:
        """Return complete files that are neither taken nor offered, in the order of the listing."""
        found, unfinished = list[ListedFile](), dict[str, ListedFile]()
        for file in self._listing():
            if self._offered.get(file.path) == file or not self._wanted(file):
                continue
            if self._is_complete(file):
                found.append(file)
            else:
                unfinished[file.path] = file
        self._unfinished = unfinished
        self._offered |= {file.path: file for file in found}
        self._waiting_files = len(self._offered) + len(unfinished)
        return found

    def _wanted(self, file: ListedFile) -> bool:
        """Return whether a file is new, or taken with another content and to be taken again."""
        state = self._taken.compare(file)
        if state != "changed":
            return state == "new"
        if self._replaced == "fail":
            raise SourceError(
                f"{self.name}: {file.path} was learned and has another content now",
                hint="replaced: new_record learns it too, replaced: skip leaves it out",
            )
        return self._replaced == "new_record"

    def _learned(self, name: str) -> ListedFile | None:
        """Return the file of a record's id, where it still has the content that was learned."""
        file = self._stat(name)
        if file is None:
            path, _, version = name.rpartition("@")
            file = self._stat(path)
            if file is None or version != str(file.version):
                return None
        return file if self._taken.compare(file) == "same" else None

    def _record(self, file: ListedFile, content: bytes | BadRecord, *, again: bool) -> Any:
        if isinstance(content, BadRecord):
            return content
        parts = file.path.split("/")
        return {
            "image": content,
            "label": parts[self.depth - 1] if self.depth else None,
            "domain": parts[0] if self.depth == 2 else None,
            "id": f"{file.path}@{file.version}" if again else file.path,
        }
