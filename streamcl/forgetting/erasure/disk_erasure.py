"""Erasure from everything that a run keeps on disk but the lineage: once for all requests of an erasure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from streamcl.forgetting.annotations import count_annotations, erase_annotations
from streamcl.forgetting.erasure.erasure_plan import ErasurePlan
from streamcl.forgetting.erasure.erasure_progress import ErasureProgress
from streamcl.forgetting.erasure.purging import purge_snapshots, stale_snapshots
from streamcl.forgetting.erasure.run_resources import RunResources
from streamcl.forgetting.methods.protocol import DataLocation
from streamcl.forgetting.receipts import locations
from streamcl.forgetting.receipts.receipt import PurgedCheckpoint
from streamcl.forgetting.receipts.uncovered import uncovered_locations
from streamcl.sinks.event_files import TENSORBOARD, event_files_with, redact_event_files
from streamcl.sinks.redaction import MissedRedaction, RedactionTarget
from streamcl.sources.retention import retained_of, stored_at
from streamcl.storage import files

DERIVED = ("summary.json", "report.html", "adapter")
"""Made from the run when it ends; removed with an erasure, and made anew at the next end."""


@dataclass(frozen=True)
class DiskErasure:
    """The result of an erasure on disk, for receipts.

    requests: how many it was for. progress: the counts. checkpoint: that is left. spool: what is said of the
    spool; None without one. stored_at: where the records came from. others: locations that only some runs
    have.
    """

    requests: int
    progress: ErasureProgress
    checkpoint: PurgedCheckpoint | None
    spool: str | None
    stored_at: str | None
    others: tuple[DataLocation, ...]

    def locations(self, request: str) -> tuple[DataLocation, ...]:
        """Return the entries of one request's receipt."""
        found = locations.disk_locations(
            self.progress["named"][request],
            self.checkpoint,
            self.progress.logged,
            self.progress["derived"],
            rows=self.progress["rows"][request],
            stored_at=self.stored_at,
            requests=self.requests,
        )
        if self.spool is not None:
            spooled = self.progress["spooled"]
            found = locations.with_spool_location(found, spooled, self.spool, requests=self.requests)
        return (*found, *self.others)


def erase_on_disk(run: RunResources, plans: Sequence[ErasurePlan], progress: ErasureProgress) -> DiskErasure:
    """Leave nothing on disk that is older than the commit just made, or names what the plans reach.

    Everything is read and rewritten once, however many plans there are; all of it may be repeated. The counts
    are those of the first time.
    """
    target, spool = _joined([plan.target for plan in plans]), retained_of(run.source)
    erasures = [(plan.request, plan.target.ids) for plan in plans]
    if not progress.has_begun:
        progress.begin(
            {
                "rows": {plan.request.id: len(plan.target.offsets) for plan in plans},
                "named": {
                    plan.request.id: bool(plan.classes or plan.domains or plan.parts) for plan in plans
                },
                "derived": [path.name for path in _derived(run)],
                "checkpoints": 0 if run.checkpoints is None else run.checkpoints.older(),
                "snapshots": len(stale_snapshots(run.folder, run.snapshots)),
                "annotations": count_annotations(run.folder, target),
                "spooled": 0 if spool is None else spool.count(erasures),
            }
        )
    checkpoint = None if run.checkpoints is None else run.checkpoints.purge(removed=progress["checkpoints"])
    served = purge_snapshots(run.folder, run.snapshots, removed=progress["snapshots"])
    missed = _redact(run, target, progress)
    annotated = erase_annotations(run.folder, target, removed=progress["annotations"])
    if spool is not None:
        spool.erase(erasures)
    for path in _derived(run):
        files.remove(path, disk=run.disk)
    if run.statistics is not None:
        run.statistics.file.purge()
    others = (*served, *annotated, *missed, *uncovered_locations(run.folder))
    said = None if spool is None else spool.description
    return DiskErasure(len(plans), progress, checkpoint, said, stored_at(run.source), others)


def _derived(run: RunResources) -> list[Path]:
    """Return the paths of what was made from the run when it ended."""
    return [path for name in DERIVED if (path := run.folder / name).exists()]


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


def _redact(
    run: RunResources, target: RedactionTarget, progress: ErasureProgress
) -> tuple[DataLocation, ...]:
    """Redact what sinks keep; return what receipts say of sinks that failed.

    TensorBoard's files lie in the run directory, also where the sink is not configured any more.
    """
    folder, missed = run.folder / TENSORBOARD, tuple[DataLocation, ...]()
    progress.note_log(TENSORBOARD, len(event_files_with(folder, target.parts)))
    try:
        run.sink.redact(target, progress.note_log)
    except MissedRedaction as error:
        why = f"{', '.join(error.sinks)} failed to take it out of their copies"
        missed = (DataLocation("copies by sinks", "remains", why),)
    redact_event_files(folder, target.parts, disk=run.disk)
    return missed
