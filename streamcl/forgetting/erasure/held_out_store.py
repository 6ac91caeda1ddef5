"""Erasure from the samples of a stream that are held out."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from streamcl.events import HoldoutPart, Sample
from streamcl.forgetting.methods.protocol import DataLocation, LocationStatus
from streamcl.sinks.redaction import RedactionTarget


class HeldOutStore(Protocol):
    """Samples of the stream that are held out (see streamcl.memory.holdout_store)."""

    version: int

    @property
    def parts(self) -> tuple[HoldoutPart, ...]:
        """The samples as one part; none where nothing is held out."""

    def may_hold_out(self, sample: Sample) -> bool:
        """Return whether the sample is held out, or will be."""

    def purge(self, ids: Collection[str]) -> int:
        """Remove the samples with these ids; return how many there were."""

    def forget_class(self, label: str) -> int:
        """Remove the samples of a class, and its name; return how many samples there were."""


def purge_held_out(store: HeldOutStore | None, target: RedactionTarget) -> tuple[DataLocation, ...]:
    """Remove a target from the store; return what was done there, nothing where a run holds none out."""
    if store is None or not store.parts:
        return ()
    purged = store.purge(target.ids) + sum(store.forget_class(label) for label in sorted(target.labels))
    status: LocationStatus = "erased" if purged else "not affected"
    return (DataLocation("held-out samples", status, f"{purged} samples were among them"),)
