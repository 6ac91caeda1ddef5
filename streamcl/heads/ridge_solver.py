"""The weights that a closed-form head uses, and when they are solved anew from its growing statistics."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from streamcl.heads.cross_validation import AdaptiveRidge
from streamcl.heads.solving import is_due, normal_equations, solve_ridge, variance
from streamcl.heads.stability import RidgeStability, ScoreUncertainty, SolveUncertainty
from streamcl.heads.statistics import Statistics, zero_padded
from streamcl.protocols import Rollback, State, savepoint_of

Weights: TypeAlias = tuple[Tensor, Tensor]
"""W float64 [D, C] and b float64 [C]."""

SolveRule: TypeAlias = Callable[[Statistics, float | None], Weights]
"""Solves statistics with a variance ridge; None where the head has another rule."""

MIN_SAMPLES_BETWEEN_SOLVES = 48
"""D over this: samples between solves for a class that doubled, at least; 64 at D = 3072. With fewer, each
small batch would solve while classes are new; twice as many cost 1 to 2 points right before learning."""


class RidgeSolver:
    """Weights in use, solved when that falls due and not before somebody asks for them.

    Which statistics a solve is of never depends on when scores were asked for: whatever is owed is solved
    before the statistics change. The head passes its statistics to every call.

    Args:
        rule: solves; None: ridge regression.
        statistics: of which the first weights are.
        ridge: the variance ridge.
        trace_ridge: see RidgeHead.
        refit_fraction: see RidgeHead.
        keeps_uncertainty: whether the uncertainty of the weights in use is computed with each solve, and is
            a part of the state: about half the size of the sums, and a decomposition a solve.

    Attributes:
        ridge: the variance ridge of the solve in use.
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
    ) -> None:
        self.ridge = ridge
        self._keeps_uncertainty = keeps_uncertainty
        self._uncertainty: SolveUncertainty | None = None  # of the weights in use, where it is kept
        self._trace_ridge = trace_ridge
        self._rule = functools.partial(solve_ridge, trace_ridge) if rule is None else rule
        self._refit_fraction = refit_fraction
        self._W = statistics.Q.clone()
        self._b = self._W[0].clone()
        self._solved_counts = statistics.counts
        self._due = False
        self._refit: Weights | None = None  # of all that is known; only spares a second solve
        self._searched: tuple[Statistics, AdaptiveRidge] | None = None  # for these sums; the same
        self._stability: tuple[Statistics, RidgeStability] | None = None  # of these sums; the same
        self._leading: tuple[Statistics, dict[int, Weights]] | None = None  # by the number of features

    def grow(self, more: int) -> None:
        """Have so many more class columns, with zero weights."""
        self._refit = None
        self._solved_counts, self._W, self._b = (
            zero_padded(values, more) for values in (self._solved_counts, self._W, self._b)
        )
        if self._uncertainty is not None:
            self._uncertainty = self._uncertainty.grown(more)

    def select(self, columns: Sequence[int]) -> None:
        """Keep these class columns, in this order."""
        keep = list(columns)
        self._refit = None
        self._solved_counts, self._W, self._b = self._solved_counts[keep], self._W[:, keep], self._b[keep]
        if self._uncertainty is not None:
            self._uncertainty = self._uncertainty.select(keep)

    def weights(self, statistics: Statistics) -> Weights:
        """Return the weights in use, [D, C] and [C]."""
        self._solve_if_due(statistics)
        return self._W, self._b

    def refit_weights(self, statistics: Statistics) -> Weights:
        """Return weights of all that is known now, [D, C] and [C]; those in use stay."""
        ridge = self._ridge_of_all(statistics)
        if self._refit is None:
            same = ridge.value == self.ridge.value and torch.equal(self._solved_counts, statistics.counts)
            self._refit = (self._W, self._b) if same else self._solve(statistics, ridge)
        return self._refit

    def uncertainty(self, statistics: Statistics, rows: Tensor) -> ScoreUncertainty | None:
        """Return the uncertainty of the scores that `weights` give; None where it is not kept.

        Args:
            statistics: of all that is known.
            rows: float64 [N, D].
        """
        self._solve_if_due(statistics)
        return None if self._uncertainty is None else self._uncertainty.uncertainty(rows)

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
        self._due, self.ridge = True, self.ridge.reset()
        return self.weights(statistics)

    def falls_due(self, statistics: Statistics, counts: Tensor) -> bool:
        """Return whether a solve falls due when the counts have changed; else make one that is pending.

        Called before the statistics change, which `after_learning` reports.

        Args:
            statistics: those before the change.
            counts: int64 [C], samples of each class after it.
        """
        grown = counts > statistics.counts
        apart = statistics.gram.width // MIN_SAMPLES_BETWEEN_SOLVES
        if is_due(counts, self._solved_counts, grown, self._refit_fraction, apart=apart):
            if self.ridge.is_outdated(statistics):  # or it would matter whether scores were asked for
                self._solve_if_due(statistics)
            return True
        self._solve_if_due(statistics)
        return False

    def after_learning(self, statistics: Statistics, *, due: bool) -> None:
        """Go on with statistics that have grown. Cannot fail, so that all of a step happens."""
        self._refit = None
        if due:
            self._due, self._solved_counts = True, statistics.counts

    def after_erasure(self, statistics: Statistics) -> None:
        """Go on with statistics from which samples were subtracted: a solve is due, the ridge found anew."""
        self.after_learning(statistics, due=True)
        self.ridge, self._stability = self.ridge.reset(), None
        self._searched = self._leading = self._uncertainty = None

    def savepoint(self) -> Rollback:
        """Return a callable that restores the present weights and what is owed."""
        names = ("_W", "_b", "_solved_counts", "_due", "_refit", "_searched", "ridge", "_uncertainty")
        return savepoint_of(self, *names)

    def state_dict(self, statistics: Statistics) -> State:
        """Return the weights in use, the counts that they were solved for, and the ridge."""
        self._solve_if_due(statistics)
        arrays = {"W": self._W, "b": self._b, "solved": self._solved_counts}
        plain = {name: array.cpu().numpy().copy() for name, array in arrays.items()}
        kept = {} if self._uncertainty is None else {"uncertainty": self._uncertainty.state_dict()}
        return {**plain, **self.ridge.state_dict(), **kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the solver that returned `state`."""
        device = self._W.device
        self._W, self._b, self._solved_counts = (
            torch.tensor(np.asarray(state[name]), device=device) for name in ("W", "b", "solved")
        )
        self.ridge, self._due, self._refit = self.ridge.with_state(state), False, None
        self._searched = None
        kept = state.get("uncertainty") if self._keeps_uncertainty else None
        self._uncertainty = None if kept is None else SolveUncertainty.from_state(kept, device)

    def _solve_if_due(self, statistics: Statistics) -> None:
        if not self._due:
            return
        ridge = self.ridge.searched(statistics) if self.ridge.is_outdated(statistics) else self.ridge
        if self._keeps_uncertainty and statistics.total:
            equations = normal_equations(self._trace_ridge, statistics, ridge.value)
            W, b = equations.solve()
            self._W, self._b = W.contiguous(), b.contiguous()
            self._uncertainty = RidgeStability(equations).of_solve()
        else:
            self._W, self._b = self._solve(statistics, ridge)
        self.ridge, self._solved_counts, self._due = ridge, statistics.counts, False

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
