"""The weights that a closed-form head uses, and when they are solved anew from its growing statistics."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from streamcl.heads.cross_validation import AdaptiveRidge
from streamcl.heads.deferred_solve import DeferredSolve, Solve, SolveRule, Weights
from streamcl.heads.interim_solve import InterimSolve, SolveFactor
from streamcl.heads.solving import is_due, linear_scores, normal_equations, solve_ridge, variance
from streamcl.heads.stability import RidgeStability, ScoreUncertainty
from streamcl.heads.statistics import Statistics, zero_padded
from streamcl.protocols import Rollback, State, savepoint_of

MIN_SAMPLES_BETWEEN_SOLVES = 48
"""D over this: samples between solves for a class that doubled, at least; 64 at D = 3072. With fewer, each
small batch would solve while classes are new; twice as many cost 1 to 2 points right before learning."""


class RidgeSolver:
    """Weights in use, solved when that falls due and not before somebody asks for them.

    Which statistics a solve is of never depends on when scores were asked for: what is owed is solved before
    the statistics change, which the head passes to every call.

    With `defer_solve` a solve is computed in a thread, from a copy of the statistics, and comes into use at a
    position fixed beforehand, where one that fell due meanwhile is begun. Until then the solve in use takes
    in new samples (see `InterimSolve`), unless by another rule. The first solve is not deferred, nor what
    follows an erasure, which discards a pending solve, as that is of the erased samples too.

    Args:
        rule: solves; None: ridge regression.
        statistics: of which the first weights are.
        ridge: the variance ridge.
        trace_ridge: see RidgeHead.
        refit_fraction: see RidgeHead.
        keeps_uncertainty: whether the uncertainty of the weights in use is computed with each solve, and is
            a part of the state: about half the size of the sums, and a decomposition a solve.
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
        self._keeps_factor = defer_solve is not None and rule is None
        self._trace_ridge = trace_ridge
        self._rule = functools.partial(solve_ridge, trace_ridge) if rule is None else rule
        self._refit_fraction, self._defer_solve = refit_fraction, defer_solve
        self._used = Solve.none_of(statistics, ridge)  # whose weights are in use
        self._last_counts = statistics.counts  # of the last solve that fell due, be it computed or not
        self._due = self._at_once = False  # whether one is to be computed, and is not to be deferred
        self._pending: DeferredSolve | None = None
        self._owed = False  # whether another one has fallen due since that was begun
        self._discarded: DeferredSolve | None = None  # which never comes into use
        self._refit: Weights | None = None  # of all that is known; only spares a second solve
        self._searched: tuple[Statistics, AdaptiveRidge] | None = None  # for these sums; the same
        self._stability: tuple[Statistics, RidgeStability] | None = None  # of these sums; the same
        self._leading: tuple[Statistics, dict[int, Weights]] | None = None  # by the number of features
        self._interim: tuple[Statistics, Solve, InterimSolve | None] | None = None  # of these

    @property
    def ridge(self) -> AdaptiveRidge:
        """The variance ridge of the solve in use."""
        return self._used.ridge

    def grow(self, more: int) -> None:
        """Have so many more class columns, with zero weights."""
        self._refit = None
        self._used, self._last_counts = self._used.grown(more), zero_padded(self._last_counts, more)

    def select(self, columns: Sequence[int]) -> None:
        """Keep these class columns, in this order; a pending solve is replaced by one at once."""
        self._refit = None
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
        if (interim := self._interim_solve(statistics)) is not None:
            return interim.scores(rows).masked_fill(~interim.known, -math.inf)
        known = (statistics.counts > 0) & (self._used.counts > 0)
        return linear_scores(rows, self._used.W, self._used.b, known)

    def refit_weights(self, statistics: Statistics) -> Weights:
        """Return weights of all that is known now, [D, C] and [C]; those in use stay."""
        ridge = self._ridge_of_all(statistics)
        if self._refit is None:
            used = self._used
            same = ridge.value == used.ridge.value and torch.equal(used.counts, statistics.counts)
            self._refit = (used.W, used.b) if same else self._solve(statistics, ridge)
        return self._refit

    def uncertainty(self, statistics: Statistics, rows: Tensor) -> ScoreUncertainty | None:
        """Return the uncertainty of what `scores` gives; None where it is not kept.

        Args:
            statistics: of all that is known.
            rows: float64 [N, D].
        """
        self._solve_if_due(statistics)
        if (found := self._used.uncertainty) is None:
            return None
        interim = self._interim_solve(statistics)
        return (found if interim is None else replace(found, scale=interim.scale)).uncertainty(rows)

    def refit_uncertainty(self, statistics: Statistics, rows: Tensor) -> ScoreUncertainty:
        """Return the uncertainty of the scores that `refit_weights` give rows [N, D].

        The first call after a change decomposes the sums, which takes about twice as long as a solve.

        Args:
            statistics: of all that is known.
            rows: float64 [N, D].
        """
        if not statistics.total:
            variance = rows.new_zeros(len(rows), statistics.classes)
            return ScoreUncertainty(variance, rows.new_full((len(rows),), math.nan))
        return self._refit_stability(statistics).uncertainty(rows)

    def leading_weights(self, statistics: Statistics, width: int) -> Weights:
        """Return weights of all that is known on the first `width` features alone, [width, C] and [C].

        They depend on nothing else, in their last bits too: the first call after a change solves the sums of
        these features. Ridges are those of all features.

        Args:
            statistics: of all that is known.
            width: at most D.
        """
        if not statistics.total:
            return statistics.Q[:width], statistics.Q[0]
        if self._leading is None or self._leading[0] is not statistics:
            self._leading = statistics, {}
        solved = self._leading[1]
        if width not in solved:
            ridge = self._ridge_of_all(statistics).value
            W, b = normal_equations(self._trace_ridge, statistics, ridge, width).solve()
            solved[width] = W.contiguous(), b  # the order of memory decides last bits
        return solved[width]

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
        self._solve_if_due(statistics)
        return self._used.W, self._used.b

    def falls_due(self, statistics: Statistics, counts: Tensor) -> bool:
        """Return whether a solve falls due when the counts have changed; else make one that was due before.

        Called before the statistics change, which `after_learning` reports.

        Args:
            statistics: those before the change.
            counts: int64 [C], samples of each class after it.
        """
        if self._defer_solve is not None:
            self._solve_if_due(statistics)
        grown = counts > statistics.counts
        apart = statistics.gram.width // MIN_SAMPLES_BETWEEN_SOLVES
        due = is_due(counts, self._last_counts, grown, self._refit_fraction, apart=apart)
        if not due or self.ridge.is_outdated(statistics):  # or it would matter whether scores were asked for
            self._solve_if_due(statistics)
        return due

    def after_learning(self, statistics: Statistics, *, due: bool) -> None:
        """Go on with statistics that have grown. Cannot fail, so that all of a step happens."""
        self._refit = None
        if due and self._pending is not None:
            self._owed = True
        elif due:
            self._due, self._last_counts = True, statistics.counts

    def after_erasure(self, statistics: Statistics) -> None:
        """Go on with statistics from which samples were subtracted: a solve is due, the ridge found anew."""
        self._discard_pending()
        self._refit, self._last_counts = None, statistics.counts
        self._used = replace(self._used, ridge=self.ridge.reset(), uncertainty=None, factor=None)
        self._searched = self._leading = self._stability = self._interim = None

    def savepoint(self) -> Rollback:
        """Return a callable that restores the present weights and what is owed."""
        deferred = ("_at_once", "_pending", "_owed", "_discarded")
        return savepoint_of(self, "_used", "_last_counts", "_due", "_refit", "_searched", *deferred)

    def state_dict(self, statistics: Statistics) -> State:
        """Return the solve in use and, waiting for it, a pending one with the position of its use."""
        self._solve_if_due(statistics)
        state = self._used.state_dict()
        if self._pending is None:
            return state
        pending = self._pending.result().state_dict()
        return {**state, "pending": {**pending, "position": self._pending.position, "owed": self._owed}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the solver that returned `state`; one that does not defer solves at once what is pending."""
        keeps = {"keeps_uncertainty": self._keeps_uncertainty, "keeps_factor": self._keeps_factor}
        pending, self._used = state.get("pending"), self._used.with_state(state, **keeps)
        self._last_counts, self._pending = self._used.counts, None
        self._due, self._at_once = pending is not None and self._defer_solve is None, False
        self._owed, self._refit, self._searched, self._discarded = False, None, None, None
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
            self._due, self._pending, self._owed = self._owed, None, False
        if not self._due:
            return
        if self._defer_solve is None or self._at_once or not bool(self._used.counts.any()):
            self._used = self._solved(statistics, self._used.ridge)
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
        if not (self._keeps_uncertainty or self._keeps_factor) or not statistics.total:
            return Solve(*self._solve(statistics, ridge), statistics.counts, ridge)
        equations = normal_equations(self._trace_ridge, statistics, ridge.value)
        W, b = (part.contiguous() for part in equations.solve())
        uncertainty = RidgeStability(equations).of_solve() if self._keeps_uncertainty else None
        factor = SolveFactor.of(equations, statistics.Q) if self._keeps_factor else None
        return Solve(W, b, statistics.counts, ridge, uncertainty, factor)

    def _interim_solve(self, statistics: Statistics) -> InterimSolve | None:
        """Return the weights in use with what has come since; None where nothing has, or it is not kept."""
        if (used := self._used).factor is None:
            return None
        if self._interim is None or self._interim[:2] != (statistics, used):
            self._interim = statistics, used, InterimSolve.of(used, used.factor, statistics)
        return self._interim[2]

    def _refit_stability(self, statistics: Statistics) -> RidgeStability:
        if self._stability is None or self._stability[0] is not statistics:
            ridge = self._ridge_of_all(statistics).value
            equations = normal_equations(self._trace_ridge, statistics, ridge)
            self._stability = statistics, RidgeStability(equations)
        return self._stability[1]

    def _ridge_of_all(self, statistics: Statistics) -> AdaptiveRidge:
        """Return the ridge of a solve of all that is known now, which is searched once."""
        self._solve_if_due(statistics)
        if self._searched is None or self._searched[0] is not statistics:
            self._searched = statistics, self.ridge.searched(statistics)
        return self._searched[1]

    def _solve(self, statistics: Statistics, ridge: AdaptiveRidge) -> Weights:
        """Weights in the order of memory that a state restores: a product's last bits depend on it."""
        W, b = self._rule(statistics, ridge.value)
        return W.contiguous(), b.contiguous()
