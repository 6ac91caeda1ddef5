"""The way of one request: planned, executed in memory, and after the commit finalised on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from streamcl.capabilities.declaration import capabilities_of
from streamcl.errors import ForgettingError, StreamclError
from streamcl.events import ForgetRequest
from streamcl.forgetting.ledger import Ledger
from streamcl.forgetting.lineage import Lineage, Selection
from streamcl.forgetting.methods.protocol import (
    Context,
    DataLocation,
    ForgettingMethod,
    RequestScope,
)
from streamcl.forgetting.methods.select import select_method
from streamcl.forgetting.receipts import locations
from streamcl.forgetting.receipts.archive import ReceiptArchive, attempts
from streamcl.forgetting.receipts.receipt import (
    ErasureOutcome,
    PurgedCheckpoint,
    Receipt,
    ScopeSummary,
    UtilityFigures,
    build_receipt,
)
from streamcl.forgetting.redaction import remove_derived
from streamcl.forgetting.retrieval import Retrieval, retain_source
from streamcl.forgetting.run_resources import RunResources
from streamcl.forgetting.statistics.selection import StatisticsSelection
from streamcl.forgetting.tombstones import Tombstones
from streamcl.protocols import Learner
from streamcl.sinks.redaction import RedactionTarget
from streamcl.storage.plain_state import state_hash


@dataclass(frozen=True, eq=False)
class ErasurePlan:
    """A request with the rows that it selects, which the lineage is searched for once."""

    request: ForgetRequest
    rows: Selection

    def close(self) -> None:
        """Drop the selection of rows."""
        self.rows.close()

    @cached_property
    def target(self) -> RedactionTarget:
        """Return the samples and the class that no file of the run may name afterwards."""
        rows = [row for chunk in self.rows.chunks(learned=False) for row in chunk]
        ids = {row.id for row in rows} | set(self.request.ids)
        return RedactionTarget({row.offset for row in rows}, ids, self.request.label)


class Eraser:
    """Carries a request out: `plan`, `execute` in memory, and `finalise` on disk after the commit.

    methods: those to choose from, of equal guarantees the one listed first. tombstones: of
    what was erased before.
    """

    def __init__(
        self,
        resources: RunResources,
        ledger: Ledger,
        lineage: Lineage,
        methods: Sequence[ForgettingMethod],
        *,
        tombstones: Tombstones,
        clock: Callable[[], float],
    ) -> None:
        self._run, self._ledger, self._lineage = resources, ledger, lineage
        self._methods, self._tombstones, self._clock = tuple(methods), tombstones, clock
        self._archive = ReceiptArchive(resources.folder, disk=resources.disk)

    def plan(self, request: ForgetRequest) -> ErasurePlan:
        """Return what the request reaches. Changes nothing."""
        return ErasurePlan(request, self._lineage.select(request))

    def execute(self, plan: ErasurePlan, offset: int) -> ErasureOutcome:
        """Erase from learner, metrics and thumbnails, in memory, and return what came of it.

        Where the request is refused or the erasure fails, nothing has changed.
        """
        run, request, started = self._run, plan.request, self._clock()
        learner, before = run.learner, run.learner.state_dict()
        kept = None if run.statistics is None else run.statistics.scope(plan.rows.cohorts(run.statistics.by))
        context = self._context(plan, kept)
        number = attempts(run.folder, request.id) + 1
        ended = partial(ErasureOutcome, offset=offset, started=started, attempt=number)
        try:
            method, why = select_method(self._methods, request, context)
        except ForgettingError as error:
            return ended(outcome="refused", reason=str(error))
        utility_before = None if run.utility is None else run.utility(learner, request)
        try:
            result = method.erase(request, context)
            _confirm_gone(request, learner)
        except (StreamclError, ValueError, OSError) as error:
            learner.load_state_dict(before)
            if kept is not None:
                kept.undo()
            return ended(outcome="failed", reason=f"{method.name}: {_cause(error)}")
        self._erase_figures(plan)
        if run.relapse is not None and request.on_return == "drop":
            run.relapse.watch(request, result.method, result.guarantee, learner)
        if kept is not None:
            statistics = capabilities_of(learner).statistics
            by_rows = None if statistics is None else statistics.by_rows
            kept.finish(0 if by_rows is None else len(by_rows.widths))
        utility = None if utility_before is None else utility_before.beside(learner)
        cohorts = () if kept is None else tuple(kept.gone)
        return ended(
            outcome="done",
            method=result.method,
            method_reason=why,
            guarantee=result.guarantee,
            residual=result.residual,
            scope=ScopeSummary(learned=plan.rows.learned, passed=plan.rows.passed, cohorts=cohorts),
            figures=dict(result.figures),
            utility=None if utility is None else UtilityFigures(**utility),
            learner_before=state_hash(before),
            learner_after=state_hash(learner.state_dict()),
            locations=locations.in_learner(before, (*result.locations, _statistics_location(kept))),
        )

    def finalise(self, plan: ErasurePlan, outcome: ErasureOutcome) -> None:
        """Leave nothing on disk that is older than the erasure, and write the receipt, after the commit.

        Each step may be repeated after a crash.
        """
        run, request = self._run, plan.request
        receipt = build_receipt(
            request, outcome, self._ledger, completed=self._clock(), config=run.fingerprint
        )
        if outcome.outcome == "done":
            self._archive.write(receipt.model_copy(update=self._erase_on_disk(plan, receipt)))
            self._lineage.erase(sorted(plan.target.offsets))
            self._ledger.finish(request.id)
            return
        self._archive.write(receipt)
        end = self._ledger.refuse if outcome.outcome == "refused" else self._ledger.fail
        end(request.id, str(outcome.reason))

    def _erase_on_disk(self, plan: ErasurePlan, receipt: Receipt) -> dict[str, Any]:
        """Erase from everything that the run keeps but the lineage; return what the receipt says of it."""
        run, request, target = self._run, plan.request, plan.target
        self._tombstones.add_tombstones(request, target.ids)
        checkpoint = None if run.checkpoints is None else PurgedCheckpoint.from_json(run.checkpoints.seal())
        changed = run.sink.redact(target)
        derived = remove_derived(run.folder, disk=run.disk)
        if run.statistics is not None:
            run.statistics.seal()
        on_disk = locations.on_disk(request.kind, checkpoint, changed, derived, len(target.offsets))
        hashes = {
            "ids": tuple(sorted(self._ledger.fingerprint("sample", name) for name in target.ids)),
            "label": None if target.label is None else self._ledger.fingerprint("class", target.label),
        }
        return {
            "checkpoint": checkpoint,
            "locations": (*receipt.locations, *on_disk),
            "scope": receipt.scope.model_copy(update=hashes),
        }

    def _context(self, plan: ErasurePlan, kept: StatisticsSelection | None) -> Context:
        run, request, rows = self._run, plan.request, plan.rows
        retrieval = Retrieval(request, run.source, self._lineage.content)
        scope = RequestScope(
            request,
            learned=rows.learned,
            passed=rows.passed,
            forgotten_before=request.label is not None and self._ledger.is_tombstoned("class", request.label),
            chunks=lambda: rows.chunks(learned=True),
        )
        others = retain_source(run.source, self._lineage, self._tombstones.drop_erased)
        return Context(run.learner, scope, retrieval.samples, retrieval.unavailable, kept, others)

    def _erase_figures(self, plan: ErasurePlan) -> None:
        run, label = self._run, plan.request.label
        if label is not None:
            run.scores.forget_class(label)
        if run.thumbnails is not None:
            run.thumbnails.purge(sorted(plan.target.ids))
            if label is not None:
                run.thumbnails.forget_class(label)


def _statistics_location(kept: StatisticsSelection | None) -> DataLocation:
    name = "kept statistics"
    if kept is None:
        return DataLocation(name, "not affected", "this run keeps none by class or by subject")
    if not kept.touched:
        return DataLocation(name, "not affected", "none of them are of samples in scope")
    return DataLocation(
        name, "erased", "the samples' share is subtracted, and the older sums are overwritten"
    )


def _confirm_gone(request: ForgetRequest, learner: Learner) -> None:
    """Raise ForgettingError where the learner still names a forgotten class, whatever the method."""
    if request.label is not None and request.label in learner.classes:
        raise ForgettingError("the method left the class in place")


def _cause(error: Exception) -> str:
    """Return why it failed, without names: what a source says of a record may hold its id."""
    known = isinstance(error, ForgettingError)
    return str(error) if known else f"{type(error).__name__} while the samples were brought back or measured"
