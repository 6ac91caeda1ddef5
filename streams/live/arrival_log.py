"""The log of how a live stream was cut into batches since the last checkpoint, for an equal replay."""

from __future__ import annotations

import io
import json
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streamcl.errors import CheckpointError
from streamcl.sources.live_reader import RecordKey
from streamcl.storage import files


@dataclass(frozen=True, slots=True)
class CutBatch:
    """The records and labels of one batch of a live source, or its one request, by their keys.

    number: of the event in the stream, from 0. predict_only: whether the batch was not to be learned. time:
    seconds since the epoch.
    """

    number: int
    keys: tuple[RecordKey, ...]
    predict_only: bool = False
    time: float = 0.0


class ArrivalLog:
    """An append-only file of `CutBatch`, a line each, synced before the batch is handed out.

    After a crash the source goes back to its checkpoint and cuts the same batches of the same records again.
    A torn line at the end is dropped: its batch was not handed out. Keys may name files or people, so entries
    are removed once the oldest checkpoint has passed them. One thread appends, another one may drop.
    """

    def __init__(self, path: Path, *, disk: files.Disk = files.DISK) -> None:
        self.path, self._disk = path, disk
        self._handle: io.FileIO | None = None
        self._lock = threading.RLock()
        self._entries = self._read()

    def since(self, number: int) -> Sequence[CutBatch]:
        """Return the entries from the event `number` on. Raise CheckpointError where one is missing."""
        entries = [each for each in self._entries if each.number >= number]
        if [each.number for each in entries] != list(range(number, number + len(entries))):
            raise CheckpointError(
                f"{self.path} lacks batches that were cut after the checkpoint",
                hint="remove the file to go on from the checkpoint; what comes is then cut into batches anew",
            )
        return entries

    def append(self, batch: CutBatch) -> None:
        """Write and sync one entry."""
        with self._lock:
            if self._handle is None:
                files.make_folder(self.path.parent, disk=self._disk)
                self._handle = files.open_append(self.path, disk=self._disk)
            files.write_all(self._handle, _line(batch), disk=self._disk)
            self._disk.fsync(self._handle)
            self._entries.append(batch)

    def drop_before(self, number: int) -> None:
        """Remove the entries of events before `number`, which a durable checkpoint has passed."""
        with self._lock:
            kept = [each for each in self._entries if each.number >= number]
            if len(kept) < len(self._entries):
                self._replace(kept)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._handle is not None:
                self._handle.close()
                self._handle = None

    def _replace(self, entries: list[CutBatch]) -> None:
        self.close()
        if self.path.exists():
            files.atomic_write(self.path, b"".join(_line(each) for each in entries), disk=self._disk)
        self._entries = entries

    def _read(self) -> list[CutBatch]:
        """Return the entries of the file; a torn end is cut off."""
        if not self.path.exists():
            return []
        found, size = list[CutBatch](), 0
        with self.path.open("rb") as log:
            for line in log:
                if (batch := _batch(line)) is None:
                    break
                found.append(batch)
                size += len(line)
        if size < self.path.stat().st_size:
            files.truncate(self.path, size, disk=self._disk)
        return found


def _line(batch: CutBatch) -> bytes:
    fields = [batch.number, list(batch.keys), batch.predict_only, batch.time]
    body = json.dumps(fields, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _batch(line: bytes) -> CutBatch | None:
    """Return the entry of a line; None where the line is torn or damaged."""
    checksum, _, body = line.partition(b" ")
    if not body.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body[:-1]):
        return None
    number, keys, predict_only, time = json.loads(body)
    return CutBatch(number, tuple(keys), predict_only, time)
