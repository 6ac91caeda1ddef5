"""The weights that a closed-form head uses, and when they are solved anew from its growing statistics."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from streamcl.heads.cross_validation import AdaptiveRidge
from streamcl.heads.deferred_solve import DeferredSolve, Solve, SolveRule, Weights
from streamcl.heads.interim_solve import InterimSolve, NewSamples, SolveFactor
from streamcl.heads.refit_solves import RefitSolves
from streamcl.heads.solve_schedule import falls_due
from streamcl.heads.solving import linear_scores, normal_equations, solve_ridge, variance
from streamcl.heads.stability import RidgeStability, ScoreUncertainty
from streamcl.heads.statistics import Statistics, zero_padded
from streamcl.protocols import Rollback, State, savepoint_of


@dataclass(frozen=True, slots=True)
class Growth:
    """Consequences, for the weights in use, of statistics that are about to grow.

    due: whether a solve falls due. new: all that the weights in use will have taken in until then.
    """

    due: bool
    new: NewSamples | None


class RidgeSolver:
    """Weights in use, solved when that falls due and not before somebody asks for them.

    Which statistics a solve is of never depends on when scores were asked for: what is owed is solved before
    the statistics change, which the head passes to every call.

    Until the next solve the weights in use take in new samples (see `InterimSolve`), unless by another rule.
    With `defer_solve` a solve is computed in a thread, from a copy of the statistics, and comes into use at a
    position fixed beforehand, where one that fell due meanwhile is begun. The first solve is not deferred,
    nor what follows an erasure, which discards a pending solve, as that is of the erased samples too.

    Args:
        rule: solves; None: ridge regression.
        statistics: of which the first weights are.
        ridge: the variance ridge.
        trace_ridge: see RidgeHead.
        refit_fraction: see RidgeHead.
        keeps_uncertainty: whether the uncertainty of the weights in use is computed with each solve, and is
            a part of the state: a decomposition a solve.
        defer_solve: see RidgeHead.
    """

    def __init__(
        self,
        rule: SolveRule | None,
        statistics: Statistics,
        ridge: AdaptiveRidge,
        *,
        trace_ridge: float,
        refit_fraction: float,
        keeps_uncertainty: bool = False,
        defer_solve: int | None = None,
    ) -> None:
        self._keeps_uncertainty = keeps_uncertainty
        self._keeps_factor = rule is None
        self._trace_ridge = trace_ridge
        self._refit_fraction, self._defer_solve = refit_fraction, defer_solve
        self._used = Solve.none_of(statistics, ridge)  # whose weights are in use
        self._new: NewSamples | None = None  # which they have taken in since
        self._last_counts = statistics.counts  # of the last solve that fell due, be it computed or not
        self._due = self._at_once = False  # whether one is to be computed, and is not to be deferred
        self._pending: DeferredSolve | None = None
        self._owed = False  # whether another one has fallen due since that was begun
        self._discarded: DeferredSolve | None = None  # which never comes into use
        self._refits = RefitSolves(rule or functools.partial(solve_ridge, trace_ridge), trace_ridge)
        self._interim: tuple[NewSamples, Solve, InterimSolve] | None = None  # of these; spares another one

    @property
    def ridge(self) -> AdaptiveRidge:
        """The variance ridge of the solve in use."""
        return self._used.ridge

    def grow(self, more: int) -> None:
        """Have so many more class columns, with zero weights."""
        self._used, self._last_counts = self._used.grown(more), zero_padded(self._last_counts, more)

    def select(self, columns: Sequence[int]) -> None:
        """Keep these class columns, in this order; a pending solve is replaced by one at once."""
        self._new = None
        self._used, self._last_counts = self._used.select(columns), self._last_counts[list(columns)]
        if self._pending is not None:
            self._discard_pending()

    def scores(self, statistics: Statistics, rows: Tensor) -> Tensor:
        """Return scores float64 [N, C]; minus infinity for classes without weights in use.

        Args:
            statistics: of all that is known.
            rows: [N, D].
        """
        self._solve_if_due(statistics)
        if (interim := self._interim_solve()) is not None:
            return interim.scores(rows).masked_fill(~interim.known, -math.inf)
        return linear_scores(rows, self._used.W, self._used.b, self._solved_classes(statistics))

    def last_solve_scores(self, statistics: Statistics, rows: Tensor) -> Tensor:
        """Return float64 [N, C]: `scores`, but of classes that the last solve knows by that solve alone.

        Args:
            statistics: of all that is known.
            rows: [N, D].
        """
        self._solve_if_due(statistics)
        solved = self._solved_classes(statistics)
        scores = linear_scores(rows, self._used.W, self._used.b, solved)
        if self._interim_solve() is None or bool(solved[statistics.counts > 0].all()):
            return scores
        return torch.where(solved, scores, self.scores(statistics, rows))

    def refit_weights(self, statistics: Statistics) -> Weights:
        """Return weights of all that is known now, [D, C] and [C]; those in use stay."""
        self._solve_if_due(statistics)
        return self._refits.weights(statistics, self._used)

    def uncertainty(self, statistics: Statistics, rows: Tensor) -> ScoreUncertainty | None:
        """Return the uncertainty of what `scores` gives; None where it is not kept.

        Args:
            statistics: of all that is known.
            rows: float64 [N, D].
        """
        self._solve_if_due(statistics)
        found, factor = self._used.uncertainty, self._used.factor
        if found is None or factor is None:
            return None
        if (interim := self._interim_solve()) is not None:
            found = replace(found, scale=interim.scale)
        return found.uncertainty(factor.factor, rows)

    def refit_uncertainty(self, statistics: Statistics, rows: Tensor) -> ScoreUncertainty:
        """Return the uncertainty of the scores that `refit_weights` give rows [N, D].

        The first call after a change decomposes the sums, which takes about twice as long as a solve.

        Args:
            statistics: of all that is known.
            rows: float64 [N, D].
        """
        self._solve_if_due(statistics)
        return self._refits.uncertainty(statistics, self.ridge, rows)

    def leading_weights(self, statistics: Statistics, width: int) -> Weights:
        """Return weights of all that is known on the first `width` features alone, [width, C] and [C].

        They depend on nothing else, in their last bits too: the first call after a change solves the sums of
        these features. Ridges are those of all features.

        Args:
            statistics: of all that is known.
            width: at most D.
        """
        self._solve_if_due(statistics)
        return self._refits.leading_weights(statistics, self.ridge, width)

    def uncentred_ridge(self, statistics: Statistics) -> Tensor:
        """Return [D], the ridge beside the uncentred G, which tells possible sums from impossible ones."""
        if self.ridge.minimum is None:
            mean_eigenvalue = statistics.gram.trace / statistics.gram.width
            return torch.full_like(statistics.gram.diagonal(), self._trace_ridge * mean_eigenvalue)
        return self.ridge.minimum * variance(statistics)

    def exact_weights(self, statistics: Statistics) -> Weights:
        """Solve for all that is known now, use the weights from here on, and return them, [D, C] and [C]."""
        self._discard_pending()
        self._used = replace(self._used, ridge=self.ridge.reset())
        self._refits.clear()
        self._solve_if_due(statistics)
        return self._used.W, self._used.b

    def before_learning(self, statistics: Statistics, learned: Statistics) -> Growth:
        """Return what a change of the statistics means. Where no solve falls due, make one that was due.

        Args:
            statistics: those before the change.
            learned: those after it, of whose products nothing is read.
        """
        if self._defer_solve is not None:
            self._solve_if_due(statistics)
        due = falls_due(
            statistics, learned.counts, self._last_counts, self._refit_fraction, taken_in=self._keeps_factor
        )
        if not due or self.ridge.is_outdated(statistics):  # or it would matter whether scores were asked for
            self._solve_if_due(statistics)
        return Growth(due, NewSamples.taken_in(self._new, self._used, learned))

    def after_learning(self, statistics: Statistics, growth: Growth) -> None:
        """Go on with statistics that have grown. Cannot fail, so that all of a step happens."""
        self._new = growth.new
        if growth.due and self._pending is not None:
            self._owed = True
        elif growth.due:
            self._due, self._last_counts = True, statistics.counts

    def after_erasure(self, statistics: Statistics) -> None:
        """Go on with statistics from which samples were subtracted: a solve is due, the ridge found anew."""
        self._discard_pending()
        self._new, self._last_counts = None, statistics.counts
        self._used = replace(self._used, ridge=self.ridge.reset(), uncertainty=None, factor=None)
        self._refits.clear()
        self._interim = None

    def savepoint(self) -> Rollback:
        """Return a callable that restores the present weights and what is owed."""
        deferred = ("_at_once", "_pending", "_owed", "_discarded")
        return savepoint_of(self, "_used", "_new", "_last_counts", "_due", *deferred)

    def state_dict(self, statistics: Statistics) -> State:
        """Return the solve in use and, waiting for it, a pending one with the position of its use."""
        self._solve_if_due(statistics)
        state = self._used.state_dict()
        if self._new is not None:
            state = {**state, "new": self._new.state_dict()}
        if self._pending is None:
            return state
        pending = self._pending.result().state_dict()
        return {**state, "pending": {**pending, "position": self._pending.position, "owed": self._owed}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the solver that returned `state`; one that does not defer solves at once what is pending."""
        keeps = {"keeps_uncertainty": self._keeps_uncertainty, "keeps_factor": self._keeps_factor}
        pending, self._used = state.get("pending"), self._used.with_state(state, **keeps)
        self._new = NewSamples.from_state(state["new"], self._used.W.device) if "new" in state else None
        self._last_counts, self._pending = self._used.counts, None
        lacks_factor = self._keeps_factor and self._used.factor is None and bool(self._used.counts.any())
        self._due = self._at_once = lacks_factor  # a state of an earlier version
        self._due |= pending is not None and self._defer_solve is None
        self._owed, self._discarded, self._interim = False, None, None
        self._refits.clear()
        if pending is not None and self._defer_solve is not None:
            solve = self._used.with_state(pending, **keeps)
            self._pending = DeferredSolve.of(int(pending["position"]), solve)
            self._owed = bool(pending["owed"])
            self._last_counts = zero_padded(solve.counts, len(self._used.counts) - len(solve.counts))

    def _solve_if_due(self, statistics: Statistics) -> None:
        """Use a pending solve whose position has come; compute what is due, or begin to."""
        if self._pending is not None and statistics.total >= self._pending.position:
            solve = self._pending.result()
            self._used = solve.grown(statistics.classes - len(solve.counts))
            self._new = NewSamples.since(self._used, statistics)
            self._due, self._pending, self._owed = self._owed, None, False
        if not self._due:
            return
        if self._defer_solve is None or self._at_once or not bool(self._used.counts.any()):
            self._used, self._new = self._solved(statistics, self._used.ridge), None
            if self._discarded is not None:
                self._discarded.wait()
            self._discarded, self._at_once = None, False
        else:
            kept = Statistics(statistics.gram.copy(), statistics.Q, statistics.counts)
            solve_kept = functools.partial(self._solved, kept, self._used.ridge)
            self._pending = DeferredSolve.start(statistics.total + self._defer_solve, solve_kept)
        self._last_counts, self._due = statistics.counts, False

    def _discard_pending(self) -> None:
        """Make a solve due that is not deferred, in place of one that is pending."""
        self._discarded = self._pending or self._discarded
        self._pending, self._owed, self._due, self._at_once = None, False, True, True

    def _solved(self, statistics: Statistics, ridge: AdaptiveRidge) -> Solve:
        """Return the solve of statistics, with a ridge that is searched anew where it is outdated."""
        ridge = ridge.searched(statistics) if ridge.is_outdated(statistics) else ridge
        if not self._keeps_factor or not statistics.total:
            return Solve(*self._refits.solve(statistics, ridge), statistics.counts, ridge)
        equations = normal_equations(self._trace_ridge, statistics, ridge.value)
        W, b = (part.contiguous() for part in equations.solve())
        uncertainty = RidgeStability(equations).of_solve() if self._keeps_uncertainty else None
        return Solve(W, b, statistics.counts, ridge, uncertainty, SolveFactor.of(equations, statistics.Q))

    def _solved_classes(self, statistics: Statistics) -> Tensor:
        return (statistics.counts > 0) & (self._used.counts > 0)

    def _interim_solve(self) -> InterimSolve | None:
        """Return the weights in use with what they have taken in; None where that is nothing."""
        new, used = self._new, self._used
        if new is None or used.factor is None:
            return None
        if self._interim is None or self._interim[:2] != (new, used):
            self._interim = new, used, InterimSolve(used, used.factor, new)
        return self._interim[2]
