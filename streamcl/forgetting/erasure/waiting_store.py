"""Erasure from the samples that wait for their labels."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from streamcl.forgetting.methods.protocol import DataLocation, LocationStatus
from streamcl.sinks.redaction import RedactionTarget


class WaitingStore(Protocol):
    """Samples that wait for their labels (see streamcl.memory.waiting_samples)."""

    def purge(self, ids: Collection[str]) -> int:
        """Remove the samples with these ids; return how many there were."""

    def forget_class(self, label: str) -> None:
        """Name the class in no prediction any more."""


def purge_waiting(store: WaitingStore | None, target: RedactionTarget) -> tuple[DataLocation, ...]:
    """Remove a target from the store; return what was done there, nothing where a run has none."""
    if store is None:
        return ()
    purged = store.purge(target.ids)
    for label in target.labels:
        store.forget_class(label)
    status: LocationStatus = "erased" if purged else "not affected"
    why = f"{purged} samples were among them"
    if target.labels:
        why += "; one that a label to come names as of this class leaves then, and its id stays in the logs"
    return (DataLocation("samples that wait for labels", status, why),)
