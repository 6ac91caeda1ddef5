"""Makes the newest checkpoint the only one, so that none is left from before an erasure."""

from __future__ import annotations

import hashlib
from typing import Any

from streamcl.storage.checkpoint import BackgroundSaver, Checkpoints
from streamcl.storage.checkpoint_format import MANIFEST


class CheckpointPurger:
    """Removes older checkpoints of a run. saver: writes them in the background, where one does."""

    def __init__(self, checkpoints: Checkpoints, saver: BackgroundSaver | None = None) -> None:
        self._checkpoints, self._saver = checkpoints, saver

    def seal(self) -> dict[str, Any]:
        """Wait for the commit just made, then remove every older checkpoint; which one is left.

        Raise CheckpointError where the disk refuses: then seal again.
        """
        if self._saver is not None:
            self._saver.wait()
        newest = self._checkpoints.paths()[-1]
        removed = self._checkpoints.purge_before(newest)
        digest = hashlib.sha256((newest / MANIFEST).read_bytes()).hexdigest()
        return {"name": newest.name, "manifest_sha256": digest, "removed": len(removed)}
