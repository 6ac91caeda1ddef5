"""Follows the files of a run while it goes on: what is added is read once, what is replaced is read anew."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, TypeAlias

from streamcl.forgetting.receipts.archive import RECEIPTS
from streamcl.report.checkpoints import CheckpointLog
from streamcl.report.reading import LIMIT_EVENTS, LOG_TOPICS, RunLog, summary_file
from streamcl.report.series import as_int
from streamcl.storage.json_lines import json_object

PORTION_BYTES = 4 << 20
"""Bytes of each file that one call reads at most: some 50 ms of work."""
MAX_LINE_BYTES = 1 << 20
TAIL = 64
"""Bytes before the place in a file that must still be the same for it to be read on from there."""
MAX_EVALUATIONS = 1000
"""Held-out evaluations that are remembered, the newest."""

Mark: TypeAlias = tuple[int, ...]


class FollowedLines:
    """The records that are added to a JSON Lines file.

    behind: bytes that were there at the last read and have not been read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity: Mark = ()
        self._place, self._tail = 0, b""
        self.behind = 0

    @property
    def replaced(self) -> bool:
        """Whether what was read is no longer there: the file was cut, rewritten, replaced or removed."""
        if not self._identity:
            return False
        try:
            with self._path.open("rb") as file:
                return not self._is_same(file)
        except OSError:
            return True

    def read(self) -> list[dict[str, Any]]:
        """Return the complete records after the place of the last call, of PORTION_BYTES bytes at most."""
        try:
            with self._path.open("rb") as file:
                self._identity = _identity(file)
                return self._records(file)
        except OSError:
            return []

    def _records(self, file: io.BufferedReader) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        end, place = os.fstat(file.fileno()).st_size, file.seek(self._place)
        while place - self._place < PORTION_BYTES:
            line = file.readline(MAX_LINE_BYTES)
            if not line.endswith(b"\n") and len(line) < MAX_LINE_BYTES:
                break  # none, or one that is still being written
            place += len(line)
            if (record := json_object(line)) is not None:
                found.append(record)
        self._place, self.behind = place, max(0, end - place)
        file.seek(max(0, place - TAIL))
        self._tail = file.read(min(place, TAIL))
        return found

    def _is_same(self, file: io.BufferedReader) -> bool:
        if _identity(file) != self._identity:
            return False
        file.seek(max(0, self._place - TAIL))
        return file.read(len(self._tail)) == self._tail


class RunFollower:
    """The contents of a run directory, kept up to date; nothing is written, and no lock is held.

    Memory is bounded however long the run is. After an erasure everything is read anew.

    log: the contents, as far as they were read. checkpoints: those that there are. written: when the last
    record was written, in seconds since the epoch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._begin()

    @property
    def behind(self) -> int:
        """Bytes that are still to be read."""
        return sum(lines.behind for lines in self._files.values())

    @property
    def written(self) -> float | None:
        """When figures were written last, in seconds since the epoch; None where there are none."""
        times = [mark[-1] for topic in LOG_TOPICS if (mark := _mark(self.folder / f"{topic}.jsonl"))]
        return max(times) / 1e9 if times else None

    def advance(self) -> bool:
        """Read on; return whether anything is different from before."""
        erased = _mark(self.folder / RECEIPTS)
        changed = erased != self._erased or any(lines.replaced for lines in self._files.values())
        if changed:
            self._begin()
        for topic, lines in self._files.items():
            for record in lines.read():
                self._take_in(topic, record)
                changed = True
        self._bound_evaluations()
        return self._read_rest() or changed

    def _begin(self) -> None:
        self.log = RunLog(self.folder.resolve().name, folder=self.folder)
        self.checkpoints = CheckpointLog(self.folder)
        self._files = {topic: FollowedLines(self.folder / f"{topic}.jsonl") for topic in LOG_TOPICS}
        self._erased = _mark(self.folder / RECEIPTS)
        self._summary_mark: Mark | None = None

    def _take_in(self, topic: str, record: dict[str, Any]) -> None:
        if topic == "events":
            known = self.log.events.get(str(record.get("kind")), [])
            if len(known) >= LIMIT_EVENTS:
                del known[: LIMIT_EVENTS // 2]  # the older half makes room
        elif topic == "predictions" and not self.log.predictions.end:
            start = self.log.events.get("start", [{}])[-1]
            self.log.choose_window(as_int(start.get("length")))
        self.log.add(topic, record)

    def _bound_evaluations(self) -> None:
        while len(self.log.holdout) > MAX_EVALUATIONS:
            del self.log.holdout[next(iter(self.log.holdout))]

    def _read_rest(self) -> bool:
        """Read the summary and the checkpoints where there are new ones."""
        log, mark = self.log, _mark(self.folder / "summary.json")
        ended = bool(log.events.get("end")) and self._end() >= log.end
        changed = mark != self._summary_mark or ended != log.finished
        if changed:
            self._summary_mark, log.finished = mark, ended
            log.notes.clear()
            log.summary = summary_file(self.folder, log.notes) if ended else {}
        if self.checkpoints.advance():
            log.domains = self.checkpoints.domains
            changed = True
        return changed

    def _end(self) -> int:
        """Return where the stream ended last; a run that is followed goes on after that."""
        return as_int(self.log.events["end"][-1].get("offset")) or 0


def _identity(file: io.BufferedReader) -> Mark:
    facts = os.fstat(file.fileno())
    return facts.st_dev, facts.st_ino


def _mark(path: Path) -> Mark:
    """Return what is different after a change of the file or folder; nothing where there is none."""
    try:
        facts = path.stat()
    except OSError:
        return ()
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns
