"""Reads a folder into which images are written, for as long as the run lasts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from streamcl.errors import BadRecord, SourceError
from streams.live.files.listing import ListingReader, PathLayout, Replaced
from streams.live.files.taken_files import ListedFile, listed_file
from streams.user.records import RecordPolicy


class FolderReader(ListingReader):
    """The image files of a folder, each once, as they become complete; in the order of their times.

    A file is complete when two scans find it with the same size and time. Hidden files, and those without an
    image's ending, are not looked at. Notifications of the system are not used: they overflow and are lost,
    and a scan is the truth.

    Args:
        root: the folder.
        layout, interval, replaced, clock, sleep, policy: see `streams.live.files.listing.ListingReader`.
        name: of the stream; that of the folder where it is None.
    """

    def __init__(
        self,
        root: str | Path,
        layout: PathLayout = "classes",
        interval: float = 1.0,
        replaced: Replaced = "new_record",
        name: str | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        policy: RecordPolicy | None = None,
    ) -> None:
        self._root = Path(root)
        if not self._root.is_dir():
            raise SourceError(
                f"{self._root} is not a folder", hint="make it first; images are awaited in it as they come"
            )
        super().__init__(
            name or self._root.resolve().name or "folder",
            layout=layout,
            interval=interval,
            replaced=replaced,
            clock=clock,
            sleep=sleep,
            policy=policy,
        )

    def _listing(self) -> list[ListedFile]:
        """Return the image files by time, then by path."""
        if not self._root.is_dir():
            raise SourceError(f"{self._root} is gone", hint="bring it back; the same command continues")
        found = [file for path in self._paths() if (file := self._stat(path)) is not None]
        return sorted(found, key=lambda file: (file.version, file.path))

    def _paths(self) -> Iterator[str]:
        """Yield the path of every image below the root, at the layout's depth or deeper."""
        for folder, folders, names in os.walk(self._root):
            folders[:] = [each for each in folders if not each.startswith(".")]
            relative = Path(folder).relative_to(self._root).as_posix()
            inside = "" if relative == "." else f"{relative}/"
            yield from filter(self.accepts, (inside + name for name in names))

    def _stat(self, path: str) -> ListedFile | None:
        return listed_file(self._root, path)

    def _contents(self, files: Sequence[ListedFile]) -> list[bytes | BadRecord]:
        return [self._content(file) for file in files]

    def _content(self, file: ListedFile) -> bytes | BadRecord:
        try:
            with open(f"{self._root}/{file.path}", "rb") as opened:  # noqa: PTH123 - a Path interns its name
                data = opened.read(file.size + 1)  # no more, where it has grown
        except OSError as error:
            return BadRecord(f"{file.path} could not be read: {error.strerror}")
        if self._stat(file.path) != file:
            return BadRecord(f"{file.path} was replaced before it could be read")
        return data
