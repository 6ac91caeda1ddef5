"""One request: planned, executed in memory, and after the commit finalised on disk; and what it reaches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from streamcl.errors import ForgettingError, StreamclError
from streamcl.events import ForgetRequest
from streamcl.forgetting.erasure.disk_erasure import DiskErasure, erase_on_disk
from streamcl.forgetting.erasure.erasure_plan import ErasurePlan, plan_erasure, request_replay
from streamcl.forgetting.erasure.erasure_progress import ErasureProgress
from streamcl.forgetting.erasure.held_out_store import purge_held_out
from streamcl.forgetting.erasure.retrieval import Retrieval, retain_source
from streamcl.forgetting.erasure.run_resources import RunResources
from streamcl.forgetting.erasure.waiting_store import purge_waiting
from streamcl.forgetting.ledger.ledger import Ledger, LedgerEntry
from streamcl.forgetting.ledger.tombstones import Tombstones
from streamcl.forgetting.lineage.feature_probe import FeatureChecks
from streamcl.forgetting.lineage.lineage import Lineage
from streamcl.forgetting.methods.protocol import (
    Context,
    DataLocation,
    ForgettingMethod,
    RequestScope,
    drop_emptied,
)
from streamcl.forgetting.methods.select import select_method
from streamcl.forgetting.receipts import locations
from streamcl.forgetting.receipts import receipt as receipts
from streamcl.forgetting.receipts.archive import (
    ReceiptArchive,
    attempts,
)
from streamcl.forgetting.receipts.receipt import (
    ErasureOutcome,
    Receipt,
    ScopeSummary,
    UtilityFigures,
    ledger_identity,
)
from streamcl.forgetting.statistics.store import StatisticsSelection
from streamcl.sources.retention import retained_of
from streamcl.storage.hash_chain import ChainPlace
from streamcl.storage.plain_state import state_hash
from streamcl.storage.signing import SigningKey, signing_date

NEWEST_RECEIPT = "newest receipt"
"""The name under which the ledger remembers it, so that no process reads the whole chain to add to it."""


class Eraser:
    """Carries requests out: `plan` and `execute` each in memory, `finalise` all on disk after the commit.

    methods: those to choose from, of equal guarantees the one listed first. tombstones: of
    what was erased before.
    """

    def __init__(
        self,
        resources: RunResources,
        ledger: Ledger,
        lineage: Lineage,
        methods: Sequence[ForgettingMethod],
        features: FeatureChecks,
        *,
        tombstones: Tombstones,
        clock: Callable[[], float],
    ) -> None:
        self._features = features
        self._run, self._ledger, self._lineage = resources, ledger, lineage
        self._methods, self._tombstones, self._clock = tuple(methods), tombstones, clock
        newest = ledger.recall(NEWEST_RECEIPT)
        self._archive = ReceiptArchive(
            resources.folder, newest=None if newest is None else ChainPlace(*newest), disk=resources.disk
        )

    def plan(self, request: ForgetRequest) -> ErasurePlan:
        """Return what the request reaches; change nothing."""
        return plan_erasure(request, self._lineage, self._run)

    def execute(self, plan: ErasurePlan, offset: int, learner_before: str | None = None) -> ErasureOutcome:
        """Erase from learner, metrics and thumbnails, in memory, and return what came of it.

        Where the request is refused or the erasure fails, nothing has changed. The outcome lacks the hash of
        the learner after the erasure, which may go on with other requests.

        learner_before: the hash of the learner before the erasure; None where this request begins it.
        """
        run, request, started = self._run, plan.request, self._clock()
        learner, before = run.learner, run.learner.state_dict()
        stored = run.select_statistics(plan.rows)
        context = self._context(plan, stored, offset)
        number = attempts(run.folder, request.id) + 1
        ended = partial(ErasureOutcome, offset=offset, started=started, attempt=number)
        try:
            method, why = select_method(self._methods, request, context)
        except ForgettingError as error:
            return ended(outcome="refused", reason=str(error))
        baseline = None if run.utility is None else run.utility.before(learner, request)
        try:
            result = method.erase(request, context)
            if request.label is not None and request.label in learner.classes:
                raise ForgettingError("the method left the class in place")
            kept_names = drop_emptied(learner, plan.rows.emptied.unlearned)
        except (StreamclError, ValueError, OSError) as error:
            learner.load_state_dict(before)
            if stored is not None:
                stored.rollback()
            return ended(outcome="failed", reason=f"{method.name}: {_cause(error)}")
        waiting = self._erase_figures(plan)
        recalibrated = run.recalibrate()
        if run.relapse is not None and request.on_return == "drop":
            run.relapse.record(request, result.method, result.guarantee, learner)
        run.finish_statistics(stored)
        if run.replay is not None:
            run.replay.finish()
        utility = None if baseline is None else baseline.after(learner, plan.rows.learned)
        cohorts = () if stored is None else tuple(stored.complete_cohorts)
        return ended(
            outcome="done",
            method=result.method,
            method_reason=why,
            guarantee=result.guarantee,
            residual=result.residual,
            scope=self._summary(plan, cohorts),
            figures=dict(result.figures),
            utility=None if utility is None else UtilityFigures(**utility),
            learner_before=learner_before or self._ledger.fingerprint("learner", state_hash(before)),
            locations=locations.learner_locations(
                before,
                (*result.locations, *waiting, *kept_names, _statistics_location(stored)),
                recalibrated=recalibrated,
            ),
        )

    def hide(self, plan: ErasurePlan) -> None:
        """Let later requests of the same erasure find nothing of what this one has erased in memory."""
        plan.rows.hide()
        self._tombstones.expect(plan.request, plan.target.ids)

    def finalise(self, ended: Sequence[tuple[ErasurePlan, ErasureOutcome]]) -> None:
        """Leave nothing on disk that is older than the erasure, and write the receipts, after the commit.

        Each step may be repeated after a crash. No receipt says that a request is done while another process
        reads the lineage, whose journal then still holds erased rows: ForgettingError is raised.
        """
        with self._run.signing_key() as key:
            completed = signing_date(key, self._clock())
        done = [plan for plan, outcome in ended if outcome.outcome == "done"]
        erased = self._erase_on_disk(done) if done else None
        for plan, outcome in ended:
            receipt = receipts.build_receipt(
                plan.request,
                outcome,
                self._ledger,
                completed=completed,
                config=self._run.fingerprint,
                run=self._run.folder.resolve().name,
            )
            if outcome.outcome == "done" and erased is not None:
                locations = (*receipt.locations, *erased.locations(plan.request.id))
                update = {"checkpoint": erased.checkpoint, "locations": locations}
                self._archive.write(receipt.model_copy(update=update), key)
            else:
                self._end_unerased(receipt, plan.request, key)
        self._ledger.finish(*(plan.request.id for plan in done))
        self._ledger.remember(NEWEST_RECEIPT, self._archive.newest)

    def _erase_on_disk(self, plans: Sequence[ErasurePlan]) -> DiskErasure:
        """Set tombstones, and erase from everything that the run keeps."""
        for plan in plans:
            self._tombstones.add_tombstones(plan.request, plan.target.ids)
            self._ledger.add_tombstones(plan.request.id, "part", plan.parts)
        progress = ErasureProgress(self._ledger, [plan.request.id for plan in plans])
        erased = erase_on_disk(self._run, plans, progress)
        self._lineage.erase(sorted({offset for plan in plans for offset in plan.target.offsets}))
        return erased

    def _end_unerased(self, receipt: Receipt, request: ForgetRequest, key: SigningKey | None) -> None:
        """End a request that was refused or has failed."""
        if (retained := retained_of(self._run.source)) is not None:
            retained.scrub(request)
        self._archive.write(receipt, key)
        end = self._ledger.refuse if receipt.outcome == "refused" else self._ledger.fail
        end(request.id, str(receipt.reason))

    def refuse_unreadable(self, entry: LedgerEntry, reason: str, *, offset: int) -> None:
        """Refuse a request of which the ledger's content cannot be read, with a receipt like any other."""
        with self._run.signing_key() as key:
            completed = signing_date(key, self._clock())
        receipt = Receipt(
            request=entry.id,
            kind="unreadable",
            outcome="refused",
            reason=reason,
            offset=offset,
            on_return="drop",
            ledger=ledger_identity(self._ledger),
            received=entry.received,
            completed=completed,
            config=self._run.fingerprint,
        )
        self._archive.write(receipt, key)
        self._ledger.refuse(entry.id, reason)

    def _summary(self, plan: ErasurePlan, cohorts: tuple[str, ...]) -> ScopeSummary:
        """Return what the request reached, in keyed hashes; commits keep it until the receipt is written."""
        label, keyed = plan.request.label, self._ledger.fingerprint
        kinds = (("class", plan.classes), ("domain", plan.domains), ("part", plan.parts))
        return ScopeSummary(
            learned=plan.rows.learned,
            passed=plan.rows.passed,
            ids=tuple(sorted(keyed("sample", name) for name in plan.target.ids)),
            unlearned=tuple(sorted(keyed("sample", name) for name in plan.unlearned)),
            label=None if label is None else keyed("class", label),
            names=tuple(sorted(keyed(kind, name) for kind, names in kinds for name in names)),
            cohorts=cohorts,
        )

    def _context(self, plan: ErasurePlan, stored: StatisticsSelection | None, offset: int) -> Context:
        run, request, rows = self._run, plan.request, plan.rows
        retrieval = Retrieval(request, run.source, self._lineage.content)
        scope = RequestScope(
            request,
            learned=rows.learned,
            passed=rows.passed,
            forgotten_before=request.label is not None and self._tombstones.are_set("class", request.label),
            chunks=lambda: rows.chunks(learned=True),
        )
        others = retain_source(run.source, self._lineage, self._tombstones.drop_erased, run.held_out)
        return Context(
            run.learner,
            scope,
            retrieval.samples,
            unavailable=retrieval.unavailable,
            changed_features=self._features.probes(scope.chunks()),
            statistics=stored,
            others=others,
            drift=self._features.rows,
            replay=request_replay(run.replay, rows, self._lineage, self._tombstones, offset),
        )

    def _erase_figures(self, plan: ErasurePlan) -> tuple[DataLocation, ...]:
        """Erase outside of the learner, in memory; return what receipts say of stored samples."""
        run = self._run
        if run.thumbnails is not None:
            run.thumbnails.purge(sorted(plan.target.ids))
        for label in plan.classes:
            run.scores.forget_class(label)
            if run.thumbnails is not None:
                run.thumbnails.forget_class(label)
        for name in plan.domains:
            run.scores.forget_domain(name)
        run.history.forget_parts(plan.parts)
        return (*purge_waiting(run.waiting, plan.target), *purge_held_out(run.held_out, plan.target))


def _statistics_location(stored: StatisticsSelection | None) -> DataLocation:
    name = "stored statistics"
    if stored is None:
        return DataLocation(name, "not affected", "this run stores none by class or by subject")
    if not stored.changed:
        return DataLocation(name, "not affected", "none of them are of samples in scope")
    return DataLocation(
        name, "erased", "the samples' share is subtracted, and the older sums are overwritten"
    )


def _cause(error: Exception) -> str:
    """Return why it failed, without names: an error of a source may quote the id of a record."""
    known = isinstance(error, ForgettingError)
    return str(error) if known else f"{type(error).__name__} while the samples were retrieved or measured"
