"""Reads the frames of video files, by rate or by change."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from streamcl.errors import BadRecord, ConfigError, SourceError
from streamcl.protocols import State
from streamcl.sources.delivery import DeliveryGuarantee
from streamcl.sources.live_reader import Arrival, RecordKey
from streams.live.files.taken_files import ListedFile, TakenFiles, listed_file
from streams.live.video.frame_decoder import DecoderMessage, FrameDecoder, check_decoder, check_seconds
from streams.live.video.frame_reader import FrameReader
from streams.live.video.time_labels import TimeLabels, sidecar_of

logger = logging.getLogger(__name__)

SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv"}
SUFFIXES |= {".flv", ".3gp", ".ogv", ".mjpeg"}
ATTEMPTS_WITHOUT_FRAME = 3  # to decode a file whose decoder hangs or dies


class VideoReader(FrameReader):
    """The frames of one file, or of all videos in a folder in the order of their names, each once.

    The position is the time stamp of the last frame taken and the set of the files before. A file that cannot
    be opened is one bad record; packets that cannot be decoded are counted and logged. Files that come while
    it reads are read after the others, whatever their names.

    Args:
        path: a file, a folder, or a pattern with wildcards.
        every: seconds from one frame to the next; 0: all frames.
        change: the mean difference in [0, 1] that a frame must have from the last one taken; None: any.
        label: of every frame.
        sidecar: whether the labels are in a file beside the video, clip.csv or clip.json for clip.mp4: the
            columns, or keys, start and end (in seconds, the end excluded) and label. Other times have none.
        timeout: seconds without a sign of life after which the decoder is started again.
        name: of the stream.
    """

    delivery = DeliveryGuarantee("exactly_once", "while the files stay as they are")
    frames_at_once = 16  # one of 4K is up to 25 MB as a PNG

    def __init__(
        self,
        path: str,
        every: float = 0.5,
        change: float | None = None,
        *,
        label: str | None = None,
        sidecar: bool = False,
        timeout: float = 30.0,
        name: str | None = None,
    ) -> None:
        check_decoder()
        if label is not None and sidecar:
            raise ConfigError("a label and a sidecar are both given", hint="leave one of them out")
        self._root, self._pattern = _root_of(path)
        self._selection = {"every": check_seconds("every", every), "change": change}
        self._label, self._sidecar, self._timeout = label, sidecar, timeout
        self.name = name or self._root.name or "video"
        self.open(None)

    def open(self, position: State | None) -> None:
        """Continue after `position`. Raise SourceError where its file is gone or has another content."""
        self.close()
        state = position or {"done": {}, "current": None, "pts": None, "complete": False}
        self._done, current = TakenFiles(self.name, state["done"]), state["current"]
        self._current = None if current is None else ListedFile(*current)
        self._pts: int | None = state["pts"]
        self._opened = dict[str, ListedFile]()  # since `open`
        self._last_frames = dict[str, int | None]()  # of the files that have ended
        self._reading: ListedFile | None = None
        self._labels, self._failures = TimeLabels(()), 0
        if self._current is None:
            return
        if state["complete"] or self._pts is None:  # its end was seen, or it was a bad record
            self._opened[self._current.path] = self._current
            self._last_frames[self._current.path] = self._pts
        elif self._listed(self._current.path) != self._current:
            raise SourceError(
                f"{self.name}: {self._current.path}, of which frames were learned, is gone or has changed",
                hint="bring it back as it was",
            )

    def poll(self, timeout: float) -> Sequence[Arrival] | None:
        """Return the next frames, None after the last file."""
        if self._decoder is None and not self._start_next():
            return None
        return self._frames(timeout)

    def replay(self, keys: Sequence[RecordKey]) -> Sequence[Arrival]:
        """Return these frames. Raise SourceError where the files have others now."""
        found = list[Arrival]()
        for key in keys:
            if self._reading is None or self._reading.path != key[0]:
                self._start(self._replayed_file(key[0]))
            found.append(self._next_arrival())
            if found[-1].key != key:
                raise SourceError(f"{self.name}: {key[0]} has other frames than before the interruption")
        return found

    def advance(self, keys: Sequence[RecordKey]) -> None:
        """Move the position past these frames."""
        for path, pts in keys:
            if self._current is None or self._current.path != path:
                if self._current is not None:
                    self._done.add(self._current)
                self._current = self._opened[path]
            self._pts = pts

    def position(self) -> State:
        """Return the file and the time stamp of the last frame, and digests of the files before."""
        current = self._current
        complete = current is not None and self._last_frames.get(current.path, self) == self._pts
        return {
            "done": self._done.state(),
            "current": None if current is None else list(current),
            "pts": self._pts,
            "complete": complete,
        }

    def fetch(self, ids: Sequence[str]) -> Generator[tuple[str, Any], None, None]:
        """Yield the frames that can still be decoded from their files."""
        wanted: dict[str, set[int]] = {}
        for each in ids:
            path, _, pts = each.rpartition("@")
            if re.fullmatch(r"-?\d{1,18}", pts) and self._learned(path, int(pts)):
                wanted.setdefault(path, set()).add(int(pts))
        for path, stamps in wanted.items():
            yield from self._fetched(path, stamps)

    def _start_next(self) -> bool:
        """Start with the file of the position, or the next one; return whether there is one."""
        if self._current is not None and self._current.path not in self._opened:
            self._start(self._current)
            return True
        for path in self._paths():
            file = self._listed(path)
            if file is None or path in self._opened:
                continue
            state = self._done.compare(file)
            if state == "new":
                self._start(file)
                return True
            if state == "changed":
                raise SourceError(
                    f"{self.name}: {path} was learned and has another content now",
                    hint="give a new video a name of its own",
                )
        return False

    def _start(self, file: ListedFile) -> None:
        self.close()
        after = self._pts if self._current == file else None
        self._reading, self._after = file, after
        self._opened[file.path] = file
        self._labels = self._labels_of(file.path)
        self._decoder = self._decoder_of(file.path, after, **self._selection)

    def _decoder_of(self, path: str, after: int | None, **selection: float | None) -> FrameDecoder:
        spec: dict[str, Any] = {"address": str(self._root / path), "after": after, **selection}
        fixed: dict[str, Any] = {"format": None, "options": {}, "live": False, "frozen_after": 0}
        return FrameDecoder(spec | fixed, self._timeout)

    def _taken(self, message: DecoderMessage) -> Arrival | None:
        """Return the frame of a message; None for others, after which another file may be read."""
        assert self._reading is not None
        path = self._reading.path
        if message.kind == "frame":
            self._failures, self._after = 0, message.facts["pts"]
            return Arrival(self._record(path, message, self._labels), [path, message.facts["pts"]])
        if message.kind == "end":
            self.close()
            self._last_frames[path] = self._after
            if message.facts["damaged"]:
                logger.warning("%s: %d packets of %s are damaged", self.name, message.facts["damaged"], path)
        elif message.kind in {"error", "hung"}:
            return self._failed(path, message.facts.get("reason", f"no frame within {self._timeout:g} s"))
        return None

    def _failed(self, path: str, reason: str) -> Arrival | None:
        """Start the decoder again; a file that yields nothing at all is a bad record."""
        self.close()
        self._failures += 1
        if self._failures < ATTEMPTS_WITHOUT_FRAME:
            logger.warning("%s: %s: %s; decoding it again", self.name, path, reason)
            self._decoder = self._decoder_of(path, self._after, **self._selection)
            return None
        self._failures = 0
        if self._after is None:
            return Arrival(BadRecord(f"{path} cannot be decoded: {reason}"), [path, None])
        raise SourceError(
            f"{self.name}: {path} cannot be decoded after its frame {self._after}: {reason}",
            hint="the same command continues there once it can be",
        )

    def _next_arrival(self) -> Arrival:
        while self._decoder is not None:
            message = self._decoder.take(0.5)
            if message is not None and (arrival := self._taken(message)) is not None:
                return arrival
        path = self._reading.path if self._reading is not None else ""
        raise SourceError(f"{self.name}: {path} has fewer frames than before the interruption")

    def _learned(self, path: str, pts: int) -> bool:
        """Return whether the frames of a file up to `pts` were taken, and it is as it was."""
        file = self._listed(path)
        newest = file == self._current and pts <= (self._pts or 0)
        return file is not None and (newest or self._done.compare(file) == "same")

    def _replayed_file(self, path: str) -> ListedFile:
        if (file := self._listed(path)) is None:
            raise SourceError(f"{self.name}: {path} is gone; its frames were learned before the interruption")
        return file

    def _record(self, path: str, message: DecoderMessage, labels: TimeLabels) -> dict[str, Any]:
        label = labels.at(message.facts["seconds"]) if self._sidecar else self._label
        return {"image": message.image, "label": label, "id": f"{path}@{message.facts['pts']}"}

    def _fetched(self, path: str, stamps: set[int]) -> Generator[tuple[str, Any], None, None]:
        """Yield ids and records of a file's frames with these time stamps."""
        labels, found = self._labels_of(path), 0
        decoder = self._decoder_of(path, None, every=self._selection["every"], change=None)
        try:
            while found < len(stamps):
                if (message := decoder.take(0.5)) is None:
                    continue
                if message.kind in {"end", "error", "hung"}:
                    break
                if message.kind == "frame" and message.facts["pts"] in stamps:
                    record = self._record(path, message, labels)
                    found += 1
                    yield record["id"], record
        finally:
            decoder.close()

    def _labels_of(self, path: str) -> TimeLabels:
        return sidecar_of(self._root / path) if self._sidecar else TimeLabels(())

    def _paths(self) -> list[str]:
        """Return the videos that are there now, by their names below the root."""
        paths = [Path(each) for each in glob.glob(self._pattern, root_dir=self._root, recursive=True)]  # noqa: PTH207
        return sorted(path.as_posix() for path in paths if path.suffix.lower() in SUFFIXES)

    def _listed(self, path: str) -> ListedFile | None:
        return listed_file(self._root, path)


def _root_of(path: str) -> tuple[Path, str]:
    """Return the folder to which the names of videos are relative, and the pattern of them there."""
    place = Path(path)
    if place.is_dir():
        return place, "**/*"
    if place.is_file():
        return place.parent, glob.escape(place.name)
    fixed = [part for part in place.parts if not glob.has_magic(part)]
    root = Path(*fixed[: next(i for i, part in enumerate((*place.parts, "*")) if glob.has_magic(part))])
    pattern = place.relative_to(root).as_posix()
    if not root.is_dir() or not glob.has_magic(pattern):
        raise ConfigError(f"there is no video {path!r}", hint="give a file, a folder or a pattern")
    return root, pattern
