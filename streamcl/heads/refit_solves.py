"""Solves of all that a closed-form head knows, beside the weights that it uses while learning."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from streamcl.heads.cross_validation import AdaptiveRidge
from streamcl.heads.deferred_solve import Solve, SolveRule, Weights
from streamcl.heads.solving import normal_equations
from streamcl.heads.stability import RidgeStability, ScoreUncertainty
from streamcl.heads.statistics import Statistics


class RefitSolves:
    """Weights of all statistics, their uncertainty, and weights of the first features alone.

    Each is computed where it is first asked for of some statistics, and kept until it is asked for of others.

    Args:
        rule: solves.
        trace_ridge: see RidgeHead.
    """

    def __init__(self, rule: SolveRule, trace_ridge: float) -> None:
        self._rule, self._trace_ridge = rule, trace_ridge
        self.clear()

    def clear(self) -> None:
        """Keep nothing, as after an erasure."""
        self._statistics: Statistics | None = None  # of which the others are
        self._ridge: AdaptiveRidge | None = None
        self._weights: Weights | None = None
        self._stability: RidgeStability | None = None
        self._leading: dict[int, Weights] = {}  # by the number of features

    def solve(self, statistics: Statistics, ridge: AdaptiveRidge) -> Weights:
        """Return weights [D, C] and [C] in the order of memory that a state restores.

        A product's last bits depend on that order.
        """
        W, b = self._rule(statistics, ridge.value)
        return W.contiguous(), b.contiguous()

    def weights(self, statistics: Statistics, used: Solve) -> Weights:
        """Return weights [D, C] and [C] of statistics; those of the solve in use where they are the same."""
        ridge = self._ridge_of(statistics, used.ridge)
        if self._weights is None:
            same = ridge.value == used.ridge.value and torch.equal(used.counts, statistics.counts)
            self._weights = (used.W, used.b) if same else self.solve(statistics, ridge)
        return self._weights

    def uncertainty(self, statistics: Statistics, ridge: AdaptiveRidge, rows: Tensor) -> ScoreUncertainty:
        """Return the uncertainty of the scores that `weights` give.

        Args:
            statistics: of all that is known.
            ridge: of the solve in use.
            rows: float64 [N, D].
        """
        if not statistics.total:
            variance = rows.new_zeros(len(rows), statistics.classes)
            return ScoreUncertainty(variance, rows.new_full((len(rows),), math.nan))
        value = self._ridge_of(statistics, ridge).value
        if self._stability is None:
            self._stability = RidgeStability(normal_equations(self._trace_ridge, statistics, value))
        return self._stability.uncertainty(rows)

    def leading_weights(self, statistics: Statistics, ridge: AdaptiveRidge, width: int) -> Weights:
        """Return weights [width, C] and [C] of the first features of statistics.

        Args:
            statistics: of all that is known.
            ridge: of the solve in use.
            width: of the features, at most D.
        """
        if not statistics.total:
            return statistics.Q[:width], statistics.Q[0]
        value = self._ridge_of(statistics, ridge).value
        if width not in self._leading:
            W, b = normal_equations(self._trace_ridge, statistics, value, width).solve()
            self._leading[width] = W.contiguous(), b
        return self._leading[width]

    def _ridge_of(self, statistics: Statistics, ridge: AdaptiveRidge) -> AdaptiveRidge:
        """Return the ridge of a solve of statistics, which is searched once, from the one in use."""
        if self._statistics is not statistics:
            self.clear()
            self._statistics = statistics
        if self._ridge is None:
            self._ridge = ridge.searched(statistics)
        return self._ridge
