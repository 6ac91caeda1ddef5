"""Removes what is older than an erasure: earlier checkpoints, and earlier snapshots for serving."""

from __future__ import annotations

import hashlib
from pathlib import Path

from streamcl.forgetting.methods.protocol import DataLocation
from streamcl.forgetting.receipts.receipt import PurgedCheckpoint
from streamcl.storage.checkpoint import BackgroundSaver, Checkpoints
from streamcl.storage.checkpoint_format import MANIFEST
from streamcl.storage.snapshots import SNAPSHOTS, Snapshots


class CheckpointPurger:
    """Removes older checkpoints of a run. saver: writes them in the background, where one does."""

    def __init__(self, checkpoints: Checkpoints, saver: BackgroundSaver | None = None) -> None:
        self._checkpoints, self._saver = checkpoints, saver

    def older(self) -> int:
        """Wait for the commit just made, and return how many checkpoints are older."""
        self._wait()
        return len(self._checkpoints.paths()) - 1

    def purge(self, removed: int) -> PurgedCheckpoint:
        """Wait for the commit just made, then remove every older checkpoint; return the one that is left.

        Raise CheckpointError where the disk refuses: then purge again.

        Args:
            removed: how many the receipt says there were, before a crash too.
        """
        self._wait()
        newest = self._checkpoints.paths()[-1]
        self._checkpoints.purge_before(newest)
        digest = hashlib.sha256((newest / MANIFEST).read_bytes()).hexdigest()
        return PurgedCheckpoint(name=newest.name, manifest_sha256=digest, removed=removed)

    def _wait(self) -> None:
        if self._saver is not None:
            self._saver.wait()


def stale_snapshots(folder: Path, published: Snapshots | None) -> list[Path]:
    """Return the snapshots of the run in `folder` that are from before the commit just made.

    Args:
        folder: the run's directory.
        published: the snapshots that this process publishes; None where it publishes none, so that all in
            the folder are from before.
    """
    return (published or Snapshots(folder / SNAPSHOTS)).stale()


def purge_snapshots(folder: Path, published: Snapshots | None, removed: int) -> tuple[DataLocation, ...]:
    """Remove the stale snapshots; return the receipt's entry where the run has a place for snapshots.

    Args:
        folder: the run's directory.
        published: see `stale_snapshots`.
        removed: how many the receipt says there were, before a crash too.
    """
    place = folder / SNAPSHOTS
    if not place.exists():
        return ()
    (published or Snapshots(place)).purge()
    why = f"older ones removed: {removed}; no request is answered by one that has been removed"
    return (DataLocation("snapshots for serving", "erased", why),)
