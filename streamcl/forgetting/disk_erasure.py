"""Erasure from everything that a run keeps on disk but the lineage: once for all requests of an erasure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from streamcl.forgetting.annotations import erase_annotations
from streamcl.forgetting.erasure_plan import ErasurePlan
from streamcl.forgetting.methods.protocol import DataLocation
from streamcl.forgetting.purging import purge_snapshots
from streamcl.forgetting.receipts import receipt as receipts
from streamcl.forgetting.receipts.receipt import PurgedCheckpoint
from streamcl.forgetting.receipts.uncovered import uncovered_locations
from streamcl.forgetting.run_resources import RunResources
from streamcl.sinks.event_files import TENSORBOARD, redact_event_files
from streamcl.sinks.redaction import MissedRedaction, RedactionTarget
from streamcl.sources.retention import retained_of, stored_at
from streamcl.storage import files

DERIVED = ("summary.json", "report.html", "adapter")
"""Made from the run when it ends; removed with an erasure, and made anew at the next end."""


@dataclass(frozen=True)
class DiskErasure:
    """The result of an erasure on disk, for receipts.

    requests: how many it was for. checkpoint: that is left. changed: log records edited. spooled: records
    emptied in the spool, and its description; None without one. derived: files removed. stored_at: where the
    records came from. others: locations that only some runs have.
    """

    requests: int
    checkpoint: PurgedCheckpoint | None
    changed: int
    spooled: tuple[int, str] | None
    derived: Sequence[str]
    stored_at: str | None
    others: tuple[DataLocation, ...]

    def locations(self, plan: ErasurePlan) -> tuple[DataLocation, ...]:
        """Return the entries of one request's receipt."""
        found = receipts.disk_locations(
            bool(plan.classes or plan.domains or plan.parts),
            self.checkpoint,
            self.changed,
            self.derived,
            rows=len(plan.target.offsets),
            stored_at=self.stored_at,
            requests=self.requests,
        )
        if self.spooled is not None:
            found = receipts.with_spool_location(found, *self.spooled, requests=self.requests)
        return (*found, *self.others)


def erase_on_disk(run: RunResources, plans: Sequence[ErasurePlan]) -> DiskErasure:
    """Leave nothing on disk that is older than the commit just made, or names what the plans reach.

    Everything is read and rewritten once, however many plans there are; all of it may be repeated.
    """
    checkpoint = None if run.checkpoints is None else run.checkpoints.purge()
    served = purge_snapshots(run.folder, run.snapshots)
    target = _joined([plan.target for plan in plans])
    changed, missed = _redact(run, target)
    annotated = erase_annotations(run.folder, target)
    spool, spooled = retained_of(run.source), None
    if spool is not None:
        spooled = spool.erase([(plan.request, plan.target.ids) for plan in plans]), spool.description
    derived = [name for name in DERIVED if (run.folder / name).exists()]
    for name in derived:
        files.remove(run.folder / name, disk=run.disk)
    if run.statistics is not None:
        run.statistics.file.purge()
    others = (*served, *annotated, *missed, *uncovered_locations(run.folder))
    return DiskErasure(len(plans), checkpoint, changed, spooled, derived, stored_at(run.source), others)


def _joined(targets: Sequence[RedactionTarget]) -> RedactionTarget:
    """Return one target that is all of them."""
    if len(targets) == 1:
        return targets[0]
    fields = [(each.offsets, each.ids, each.labels, each.parts) for each in targets]
    offsets, ids, labels, parts = zip(*fields, strict=True)
    return RedactionTarget(
        frozenset(chain.from_iterable(offsets)),
        frozenset(chain.from_iterable(ids)),
        frozenset(chain.from_iterable(labels)),
        frozenset(chain.from_iterable(parts)),
    )


def _redact(run: RunResources, target: RedactionTarget) -> tuple[int, tuple[DataLocation, ...]]:
    """Redact what sinks keep; return how many records changed, and what receipts say of sinks that failed.

    TensorBoard's files lie in the run directory, also where the sink is not configured any more.
    """
    missed: tuple[DataLocation, ...] = ()
    try:
        changed = run.sink.redact(target)
    except MissedRedaction as error:
        changed, why = error.changed, f"{', '.join(error.sinks)} failed to take it out of their copies"
        missed = (DataLocation("copies by sinks", "remains", why),)
    return changed + redact_event_files(run.folder / TENSORBOARD, target.parts, disk=run.disk), missed
