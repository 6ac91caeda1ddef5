"""Checkpoints: all that decides a run's future, in one folder that is verified before any of it is used.

A checkpoint is a folder `checkpoint-<serial>-step-<step>`; `checkpoint_format` describes its files. It
appears by one rename of a folder whose content is already synced, and disappears by one rename too, so a
crash leaves whole checkpoints and temporaries, never a part of a checkpoint.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path

from streamcl.errors import CheckpointError
from streamcl.protocols import State
from streamcl.storage import files
from streamcl.storage.array_files import digest_in, map_verified
from streamcl.storage.checkpoint_format import (
    CorruptCheckpoint,
    members_of,
    offset_of,
    verify_checkpoint,
)
from streamcl.storage.files import DISK, Disk
from streamcl.storage.manifest_mac import ManifestMac

logger = logging.getLogger(__name__)

NAME = re.compile(r"checkpoint-(\d{8,})-step-(\d+)")


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A durable checkpoint: its path, its size in bytes, and the seconds to write it."""

    path: Path
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A checkpoint whose every byte was verified. `offset` is the next record, `step` the steps done."""

    path: Path
    offset: int
    step: int
    state: State


class Checkpoints:
    """The checkpoints of one run directory. One process at a time writes (`streamcl.storage.lock`).

    A file of an array that has not changed is linked to that of the checkpoint before the newest. So of two
    checkpoints in a row each has its own files, and one is whole where the other is damaged.

    mac: authenticates those that are written, and checks those that are read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fingerprint: Mapping[str, str],
        keep: int = 2,
        disk: Disk = DISK,
        mac: ManifestMac | None = None,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}, at least one checkpoint must be kept")
        self._folder = folder
        self._fingerprint = dict(fingerprint)
        self._keep = keep
        self._disk, self._mac = disk, mac
        self._damaged: set[Path] = set()

    def paths(self) -> list[Path]:
        """Return every checkpoint, good or damaged, oldest first."""
        return list_checkpoints(self._folder)

    def oldest_step(self) -> int | None:
        """Return the step of the oldest checkpoint, good or damaged; None where there is none."""
        return next((_step(path) for path in self.paths()), None)

    def newest_before(self, offset: int) -> tuple[Path, int] | None:
        """Return the newest checkpoint that no record at or after `offset` has reached, and its offset.

        Only its manifest is read; `load` verifies the rest. None where there is none.
        """
        for path in reversed(self.paths()):
            try:
                found = offset_of(path, self._mac)
            except CorruptCheckpoint:
                continue
            if found <= offset:
                return path, found
        return None

    def newest_offset(self) -> int:
        """Return the offset of the newest checkpoint; 0 where there is none."""
        found = self.newest_before(sys.maxsize)
        return 0 if found is None else found[1]

    def load(self, path: Path) -> LoadedCheckpoint:
        """Return one checkpoint. Raise CheckpointError where it is damaged, or of another configuration."""
        try:
            return self._load(path)
        except CorruptCheckpoint as damage:
            raise CheckpointError(f"{path.name}: {damage}") from damage

    def save(self, offset: int, step: int, state: State) -> SavedCheckpoint:
        """Make a checkpoint durable, then remove the older ones beyond `keep`.

        A crash leaves the new checkpoint or only the old ones. Raise CheckpointError where the disk fails:
        then there is no new one and every old one, or only a removal failed. Raise TypeError where the state
        holds other than plain data.
        """
        began = time.monotonic()
        members = members_of(offset, step, state, self._fingerprint, self._mac)
        serial = max(map(_serial, self.paths()), default=0) + 1
        path = self._folder / f"checkpoint-{serial:08d}-step-{step}"
        try:
            files.make_folder(self._folder, disk=self._disk)
            files.commit_folder(path, lambda folder: self._fill(folder, members), disk=self._disk)
            self._prune(path)
        except OSError as error:
            message = f"the checkpoint of step {step} could not be written: {error}"
            hint = "mend the disk; the same command then continues from the checkpoint before it"
            raise CheckpointError(message, hint=hint) from error
        size = sum(len(data) for data in members.values())
        return SavedCheckpoint(path, size, time.monotonic() - began)

    def latest(self, *, strict: bool = False) -> LoadedCheckpoint | None:
        """Return the newest good checkpoint; None where the folder has none at all.

        A damaged one is logged, with the file and the reason, and the one before it is tried. Raise
        CheckpointError where none can be used, where the newest good one belongs to another configuration,
        backbone or a newer streamcl, and, with `strict`, at the first damage.
        """
        found = self.paths()
        for path in reversed(found):
            try:
                return self._load(path)
            except CorruptCheckpoint as damage:
                if not path.exists():  # a running process has replaced it while this one was reading
                    return self.latest(strict=strict)
                self._damaged.add(path)
                if strict:
                    hint = "run without --strict to use an older one"
                    raise CheckpointError(f"{path.name}: {damage}", hint=hint) from damage
                logger.warning("%s cannot be used: %s; trying the one before it", path.name, damage)
        if found:
            raise CheckpointError(
                f"none of the {len(found)} checkpoints in {self._folder} can be used",
                hint="restore the folder from a backup, or start over with --fresh",
            )
        return None

    def purge_before(self, path: Path) -> list[Path]:
        """Remove every checkpoint older than `path`, and temporaries, after an erasure; return their paths.

        No save may be running. Raise CheckpointError where `path` is not a good checkpoint, before removing
        any, or where the disk refuses a removal: then purge again.
        """
        try:
            verify_checkpoint(path, self._mac)
        except CorruptCheckpoint as damage:
            message = f"{path.name}: {damage}; the older ones stay until a good one replaces them"
            raise CheckpointError(message) from damage
        older = [other for other in self.paths() if _serial(other) < _serial(path)]
        try:
            for other in older:
                files.remove(other, disk=self._disk)
            return [*older, *self.sweep()]
        except OSError as error:
            message = f"older checkpoints in {self._folder} could not be removed: {error}"
            raise CheckpointError(message) from error

    def sweep(self) -> list[Path]:
        """Remove unfinished files that crashes left; only for the process that holds the run's lock."""
        return files.sweep(self._folder, disk=self._disk)

    def _load(self, path: Path) -> LoadedCheckpoint:
        manifest, state = verify_checkpoint(path, self._mac)
        found = manifest["fingerprint"]
        for name in sorted({*found, *self._fingerprint}):
            if found.get(name) != self._fingerprint.get(name):
                raise CheckpointError(
                    f"{path.name} belongs to another {name}: it was written for {found.get(name)!r}, "
                    f"this run has {self._fingerprint.get(name)!r}",
                    hint=f"run with the {name} it was written for, or start over with --fresh",
                )
        return LoadedCheckpoint(path, manifest["offset"], manifest["step"], state)

    def _fill(self, folder: Path, members: Mapping[str, bytes | memoryview]) -> None:
        earlier = self._to_link_to()
        for name, data in members.items():
            if earlier is None or not self._linked(earlier / name, folder / name, len(data)):
                files.write_new(folder / name, data, disk=self._disk)

    def _to_link_to(self) -> Path | None:
        """Return the checkpoint whose files a new one may have too; None: there is none.

        It is not the one that is used where the new one is damaged. Where one is kept there is no such, since
        the newest is removed once the new one is durable.
        """
        good = [path for path in self.paths() if path not in self._damaged]
        place = 2 if self._keep > 1 else 1
        return good[-place] if len(good) >= place else None

    def _linked(self, old: Path, new: Path, size: int) -> bool:
        """Give an array's file a second name, once its content is verified; return False where it has none.

        A file system without links, and a file that is absent or damaged, are no errors: the new one is
        written then.
        """
        if digest_in(old.name) is None:
            return False
        try:
            map_verified(old, size).close()
            self._disk.link(old, new)
        except (OSError, ValueError):
            return False
        return True

    def _prune(self, newest: Path) -> None:
        """Remove all but the newest `keep` good ones; those known to be damaged do not count."""
        paths = self.paths()
        keep = {newest, *[path for path in paths if path not in self._damaged][-self._keep :]}
        for path in paths:
            if path not in keep:
                files.remove(path, disk=self._disk)


class BackgroundSaver:
    """Writes checkpoints on one worker thread, one at a time; a failure is raised by the next call."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._running: Future[SavedCheckpoint] | None = None

    def save(self, offset: int, step: int, state: State) -> SavedCheckpoint | None:
        """Wait for the save before and return it, if any; begin to write `state`, which must not change."""
        before = self.wait()
        self._running = self._worker.submit(self._checkpoints.save, offset, step, state)
        return before

    def oldest_step(self) -> int | None:
        """Return the step of the oldest checkpoint on disk; one that is being written does not count yet."""
        return self._checkpoints.oldest_step()

    def wait(self) -> SavedCheckpoint | None:
        """Wait until the last checkpoint is durable; return it, once."""
        running, self._running = self._running, None
        return None if running is None else running.result()

    def wait_until_written(self) -> None:
        """Wait until no checkpoint is being written; what came of it is left to `wait`."""
        wait_for([] if self._running is None else [self._running])

    def close(self) -> SavedCheckpoint | None:
        """Wait for the last checkpoint and end the thread."""
        try:
            return self.wait()
        finally:
            self._worker.shutdown()


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the paths with a checkpoint's name, oldest first. Raise CheckpointError for no access."""
    try:
        if not folder.is_dir():
            return []
        return sorted((path for path in folder.iterdir() if NAME.fullmatch(path.name)), key=_serial)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from error


def _serial(path: Path) -> int:
    found = NAME.fullmatch(path.name)
    return int(found[1]) if found else -1


def _step(path: Path) -> int:
    found = NAME.fullmatch(path.name)
    return int(found[2]) if found else -1
