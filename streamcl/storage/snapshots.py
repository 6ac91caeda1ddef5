"""Snapshots of a learner for the processes that answer requests: numbered, complete or absent, read-only.

A snapshot is a folder `snapshot-<number>` with the arrays and the rest of a learner's state, as in a
checkpoint. It appears by one rename. Nothing is synced: a snapshot serves processes that run now, and a
checkpoint is what survives a loss of power. Arrays are read from a memory map.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors

from streamcl.protocols import CheckpointStore, State
from streamcl.storage import files
from streamcl.storage.checkpoint_format import ARRAYS, MANIFEST, TREE
from streamcl.storage.files import Disk
from streamcl.storage.plain_state import pack, unpack

SNAPSHOTS = "snapshots"
"""The folder's name in a run directory."""

KEEP_SNAPSHOTS = 3
"""Snapshots that stay, so that a reader that has just found one can open it."""

_NAME = re.compile(r"snapshot-(\d{8,})")
_LAST = "last_number"


class UnsyncedDisk(Disk):
    """A disk for files that need not survive a loss of power."""

    def fsync(self, handle: Any) -> None:
        """Do nothing."""

    def fsync_folder(self, folder: Path) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """The version of a model: `number` never repeats in a run directory, `offset` is the next record.

    step: learning steps done. published: seconds since the epoch. facts: figures of the run at that moment.
    """

    number: int
    offset: int
    step: int
    published: float
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadedSnapshot:
    """A snapshot with the learner's state, to be given to `load_state_dict`."""

    path: Path
    info: SnapshotInfo
    state: State


class TornSnapshot(Exception):
    """A snapshot is incomplete or gone; the message gives the reason."""


class Snapshots:
    """The snapshots that one process publishes into a folder.

    published: the version that this object published last, or None.
    """

    def __init__(self, folder: Path, *, disk: Disk | None = None) -> None:
        self.folder = folder
        self._disk = UnsyncedDisk() if disk is None else disk
        self.published: SnapshotInfo | None = None

    def publish(self, offset: int, step: int, state: State, facts: Mapping[str, Any] = {}) -> SnapshotInfo:
        """Make a learner's state visible to readers at once, and remove snapshots beyond the newest few.

        Args:
            offset: the next record.
            step: learning steps done.
            state: by which the learner predicts.
            facts: JSON values for `SnapshotInfo.facts`.
        """
        files.make_folder(self.folder, disk=self._disk)
        info = SnapshotInfo(self._next_number(), offset, step, time.time(), dict(facts))
        tree, arrays = pack(state)
        members = {ARRAYS: safetensors.save(arrays), TREE: json.dumps(tree, separators=(",", ":")).encode()}
        sizes = {name: len(data) for name, data in members.items()}
        members[MANIFEST] = json.dumps({**asdict(info), "sizes": sizes}).encode()
        path = self._path(info)

        def fill(folder: Path) -> None:
            for name, data in members.items():
                files.write_new(folder / name, data, disk=self._disk)
                (folder / name).chmod(0o444)

        files.commit_folder(path, fill, disk=self._disk)
        self.published = info
        for old in list_snapshots(self.folder)[:-KEEP_SNAPSHOTS]:
            files.remove(old, disk=self._disk)
        return info

    def stale(self) -> list[Path]:
        """Return the paths of every snapshot but the one that this object published last."""
        newest = None if self.published is None else self._path(self.published)
        return [path for path in list_snapshots(self.folder) if path != newest]

    def purge(self) -> int:
        """Remove every stale snapshot; return how many were removed.

        After an erasure and its commit none is left that is older. A reader answers nothing by a snapshot
        that has been removed.
        """
        removed = self.stale()
        for path in removed:
            files.remove(path, disk=self._disk)
        files.sweep(self.folder, disk=self._disk)
        return len(removed)

    def _path(self, info: SnapshotInfo) -> Path:
        return self.folder / f"snapshot-{info.number:08d}"

    def _next_number(self) -> int:
        """Return a number that no snapshot in this folder has had, removed ones included."""
        path = self.folder / _LAST
        try:
            last = int(path.read_text())
        except (OSError, ValueError):
            last = 0
        number = max([last, *map(number_of, list_snapshots(self.folder))]) + 1
        files.atomic_write(path, str(number).encode(), disk=self._disk)
        return number


class PublishingStore:
    """A store of checkpoints that also publishes the learner of each, before the checkpoint is durable.

    Args:
        store: of the checkpoints.
        snapshots: into which is published.
        for_predictions: returns what is published of the state of a learner.
    """

    def __init__(
        self, store: CheckpointStore, snapshots: Snapshots, for_predictions: Callable[[State], State]
    ) -> None:
        self._store, self._snapshots, self._for_predictions = store, snapshots, for_predictions

    def save(self, offset: int, step: int, state: State) -> Any:
        """Publish the state's learner, then save the checkpoint."""
        learner, facts = self._for_predictions(state["learner"]), {"finished": state["progress"]["finished"]}
        self._snapshots.publish(offset, step, learner, facts)
        return self._store.save(offset, step, state)

    def oldest_step(self) -> int | None:
        """Return the step of the oldest checkpoint of the store."""
        return self._store.oldest_step()


def list_snapshots(folder: Path) -> list[Path]:
    """Return the paths of the snapshots in a folder, oldest first."""
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=number_of)


def number_of(path: Path) -> int:
    """Return the number in a snapshot's name; 0 where it is no snapshot."""
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else 0


def newest_info(folder: Path) -> SnapshotInfo | None:
    """Return the version of the newest complete snapshot in a folder, without its state; None without one."""
    for path in reversed(list_snapshots(folder)):
        try:
            return _read_manifest(path)[0]
        except TornSnapshot:
            continue
    return None


def load_snapshot(path: Path) -> LoadedSnapshot:
    """Return a snapshot; its arrays come out of a memory map. Raise TornSnapshot where it is incomplete."""
    info, sizes = _read_manifest(path)
    try:
        for name in (ARRAYS, TREE):
            if (found := (path / name).stat().st_size) != sizes[name]:
                raise TornSnapshot(f"{name} has {found} bytes, its manifest says {sizes[name]}")
        with safe_open(path / ARRAYS, framework="np") as opened:
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        return LoadedSnapshot(path, info, unpack(json.loads((path / TREE).read_bytes()), arrays))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise TornSnapshot(f"{path.name} cannot be read: {error!r}") from error


def _read_manifest(path: Path) -> tuple[SnapshotInfo, Mapping[str, int]]:
    try:
        fields = json.loads((path / MANIFEST).read_bytes())
        sizes = fields.pop("sizes")
        return SnapshotInfo(**fields), sizes
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TornSnapshot(f"{path.name} has no manifest: {error!r}") from error
