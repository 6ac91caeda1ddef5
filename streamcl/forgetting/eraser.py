"""Carries a request out on what a run has in memory: all of it or nothing, and says what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streamcl.capabilities.declaration import capabilities_of
from streamcl.errors import ForgettingError, StreamclError
from streamcl.events import Batch, ForgetRequest
from streamcl.forgetting.ledger import Ledger
from streamcl.forgetting.lineage import Lineage
from streamcl.forgetting.methods.protocol import (
    Context,
    DataLocation,
    ForgettingMethod,
    RequestScope,
)
from streamcl.forgetting.methods.select import select_method
from streamcl.forgetting.receipts import locations
from streamcl.forgetting.receipts.receipt import ErasureOutcome, ScopeSummary, UtilityFigures
from streamcl.forgetting.retain_source import retain_source
from streamcl.forgetting.retrieval import Retrieval
from streamcl.forgetting.run_resources import RunResources
from streamcl.forgetting.statistics.selection import StatisticsSelection
from streamcl.protocols import Learner
from streamcl.sinks.redaction import RedactionTarget
from streamcl.storage.plain_state import state_hash


class Eraser:
    """Erases from the learner, the metrics and the gallery by the method that serves a request best.

    methods: those to choose from, of equal guarantees the one listed first. admit: what of coming batches
    may be looked at.
    """

    def __init__(
        self,
        belongings: RunResources,
        ledger: Ledger,
        lineage: Lineage,
        methods: Sequence[ForgettingMethod],
        *,
        admit: Callable[[Batch], Batch],
        clock: Callable[[], float],
    ) -> None:
        self._run, self._ledger, self._lineage = belongings, ledger, lineage
        self._methods, self._admit, self._clock = tuple(methods), admit, clock

    def carry_out(self, request: ForgetRequest, offset: int) -> ErasureOutcome:
        """Erase in memory and return what came of it. Where it is refused or fails, nothing has changed."""
        learner = self._run.learner
        before = learner.state_dict()
        started = self._clock()
        kept = self._kept(request)
        context = self._context(request, kept)
        try:
            method, why = select_method(self._methods, request, context)
        except ForgettingError as error:
            return ErasureOutcome(outcome="refused", offset=offset, started=started, reason=str(error))
        useful = None if self._run.gauge is None else self._run.gauge(learner, request)
        try:
            evidence = method.erase(request, context)
            _confirm_gone(request, learner)
        except (StreamclError, ValueError, OSError) as error:
            learner.load_state_dict(before)
            if kept is not None:
                kept.undo()
            reason = f"{method.name}: {_cause(error)}"
            return ErasureOutcome(outcome="failed", offset=offset, started=started, reason=reason)
        self._erase_figures(request)
        if self._run.monitor is not None and request.on_return == "drop":
            self._run.monitor.watch(request, evidence.method, evidence.guarantee, learner)
        if kept is not None:
            statistics = capabilities_of(learner).statistics
            rows = None if statistics is None else statistics.by_rows
            kept.finish(0 if rows is None else len(rows.widths))
        utility = None if useful is None else useful.beside(learner)
        return ErasureOutcome(
            outcome="done",
            offset=offset,
            started=started,
            method=evidence.method,
            method_reason=why,
            guarantee=evidence.guarantee,
            residual=evidence.residual,
            scope=ScopeSummary(
                learned=context.scope.learned,
                passed=context.scope.passed,
                cohorts=() if kept is None else tuple(kept.gone),
            ),
            figures=dict(evidence.figures),
            utility=None if utility is None else UtilityFigures(**utility),
            learner_before=state_hash(before),
            learner_after=state_hash(learner.state_dict()),
            locations=locations.in_learner(before, (*evidence.locations, _kept_place(kept))),
        )

    def _kept(self, request: ForgetRequest) -> StatisticsSelection | None:
        kept = self._run.kept
        return None if kept is None else kept.scope(self._lineage.cohorts(request, kept.by))

    def _context(self, request: ForgetRequest, kept: StatisticsSelection | None) -> Context:
        retrieval = Retrieval(request, self._run.source, self._lineage.content)
        scope = RequestScope(
            request,
            learned=self._lineage.count(request, learned=True),
            passed=self._lineage.count(request, learned=False),
            forgotten_before=request.kind == "class"
            and self._ledger.is_tombstoned("class", str(request.label)),
            chunks=lambda: self._lineage.chunks(request, learned=True),
        )
        others = retain_source(self._run.source, self._lineage, self._admit)
        return Context(self._run.learner, scope, retrieval.samples, retrieval.unavailable, kept, others)

    def _erase_figures(self, request: ForgetRequest) -> None:
        run = self._run
        label = request.label if request.kind == "class" else None
        if label is not None:
            run.scores.forget_class(label)
        if run.gallery is not None:
            run.gallery.purge(sorted(redaction_target(request, self._lineage).ids))
            if label is not None:
                run.gallery.forget_class(label)


def redaction_target(request: ForgetRequest, lineage: Lineage) -> RedactionTarget:
    """What of a request must not be in any file that a run keeps."""
    traces = [t for chunk in lineage.chunks(request, learned=False) for t in chunk]
    ids = {trace.id for trace in traces} | set(request.ids)
    label = request.label if request.kind == "class" else None
    return RedactionTarget({trace.offset for trace in traces}, ids, label)


def _kept_place(kept: StatisticsSelection | None) -> DataLocation:
    name = "kept statistics"
    if kept is None:
        return DataLocation(name, "not affected", "this run keeps none by class or by subject")
    if not kept.touched:
        return DataLocation(name, "not affected", "none of them are of samples in scope")
    return DataLocation(
        name, "erased", "the samples' share is subtracted, and the older sums are overwritten"
    )


def _confirm_gone(request: ForgetRequest, learner: Learner) -> None:
    """Whatever the method: afterwards a forgotten class is not named any more."""
    if request.kind == "class" and request.label in learner.classes:
        raise ForgettingError("the method left the class in place")


def _cause(error: Exception) -> str:
    """Why it failed, without names: what a source says of a record may hold its id."""
    known = isinstance(error, ForgettingError)
    return str(error) if known else f"{type(error).__name__} while the samples were brought back or measured"
