"""Records that came again although they are forgotten: their copies are erased with the next commit."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from streamcl.forgetting.annotations import erase_returned_annotations
from streamcl.forgetting.erasure.run_resources import RunResources
from streamcl.requests.label import Label
from streamcl.sources.retention import retained_of


class ReturnedRecords:
    """The forgotten records, and labels of forgotten classes, that a run was sent since its last commit."""

    def __init__(self, resources: RunResources) -> None:
        self._run = resources
        self._ids: set[str] = set()
        self._labels: set[Label] = set()

    def add(self, ids: AbstractSet[str], labels: AbstractSet[Label]) -> None:
        """Take what the tombstones have dropped; samples that waited for such a label are dropped at once."""
        self._ids |= ids
        self._labels |= labels
        waiting = {label.id for label in labels}
        if self._run.waiting is not None:
            self._run.waiting.purge(waiting)
        if self._run.held_out is not None:
            self._run.held_out.purge(waiting)
        if self._run.thumbnails is not None and waiting:
            self._run.thumbnails.purge(waiting)

    def erase(self) -> None:
        """Erase the copies that the source keeps, and annotations of them."""
        if self._ids or self._labels:
            if (spool := retained_of(self._run.source)) is not None:
                spool.erase_returned(self._ids, self._labels)
            erase_returned_annotations(self._run.folder, self._ids, self._labels)
        self._ids, self._labels = set(), set()
