"""The closed-form head: ridge regression on fixed features from additive statistics; forgets exactly.

RanPAC (arXiv 2307.02251) without its first phase, ACIL (2205.14922); subtraction as in ACU (2505.12239).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl.errors import ForgettingError
from streamcl.heads.closed_form_head import ClosedFormHead
from streamcl.heads.cross_validation import AdaptiveRidge
from streamcl.heads.deferred_solve import SolveRule
from streamcl.heads.ridge_solver import Growth, RidgeSolver
from streamcl.heads.solving import linear_scores, log_scores, random_projection
from streamcl.heads.stability import ScoreUncertainty
from streamcl.heads.statistics import (
    PartsOfHead,
    Statistics,
    check_fit,
    eigenvalue_rounding,
    smallest_eigenvalue,
    sums_by_class,
    without_residue,
)
from streamcl.protocols import Rollback, State, savepoint_of


class RidgeHead(ClosedFormHead[Statistics]):
    """Scores [N, C] = features W + b with W = (G + lambda I)^-1 Q over everything learned and not forgotten.

    G and Q are centred by the mean feature and the class frequencies when they are solved (an intercept that
    costs no statistic of its own: the sum of all features is the row sum of Q).

    The weights in use belong to a solve, and take in by its factor what comes after it. `update` makes one
    due when samples since the last exceed `refit_fraction` of all, or when a class has twice the samples and
    D / MIN_SAMPLES_WITH_FACTOR have come since; an erasure always does. It never depends on who asks when.

    Args:
        width: d of the features.
        projection: D of seeded random ReLU features phi = ReLU(f P), P ~ N(0, 1), or None for phi = f.
        seed: of the projection.
        trace_ridge: lambda as a share of the mean eigenvalue of what is inverted, the data that remain.
        variance_ridge: replaces lambda I by a ridge for each feature, its variance times so many samples,
            which makes the solution blind to the features' scales, and strong while samples are few; None:
            lambda I.
        gcv_margin: has variance_ridge grow where the error on samples left out is least at more than so many
            times as much, as with wrong labels (see `cross_validation`); None: never. It is searched anew in
            the sums whenever they have doubled, after an erasure, and for `scores_refit`.
        refit_fraction: share of new samples at which a solve is due; 0 solves at every update.
        device: of the statistics and weights.
        rule: another closed form on the same statistics, in place of the ridge regression.
        keeps_uncertainty: whether `uncertainty_in_use` is known, which makes a solve take twice as long.
        defer_solve: samples after which a solve that is due comes into use (see RidgeSolver); None: at once.
    """

    def __init__(
        self,
        width: int,
        *,
        projection: int | None = None,
        seed: int = 0,
        trace_ridge: float = 1e-2,
        variance_ridge: float | None = None,
        gcv_margin: float | None = None,
        refit_fraction: float = 0.05,
        device: torch.device | str = "cpu",
        rule: SolveRule | None = None,
        keeps_uncertainty: bool = False,
        defer_solve: int | None = None,
    ) -> None:
        if trace_ridge <= 0:
            raise ValueError(f"trace_ridge is {trace_ridge}, expected a positive number")
        self.width, self._trace_ridge = width, trace_ridge
        self.has_uncertainty, self.has_leading = rule is None, rule is None and projection is None
        self._smallest: float | None = None  # the smallest eigenvalue, known after an erasure
        self._P = None if projection is None else random_projection(width, projection, seed).to(device)
        self._sums = Statistics.empty(projection or width, device)  # its Gram alone is added to in place
        self._solver = RidgeSolver(
            rule,
            self._sums,
            AdaptiveRidge.of(variance_ridge, gcv_margin),
            trace_ridge=trace_ridge,
            refit_fraction=refit_fraction,
            keeps_uncertainty=keeps_uncertainty and rule is None,
            defer_solve=defer_solve,
        )

    @property
    def statistic_width(self) -> int:
        """D: the number of columns of the rows that are summed."""
        return self._sums.gram.width

    @property
    def statistics(self) -> Statistics:
        """The head's own sums. Not to be written to."""
        return self._sums

    def empty_on_rows(self, classes: int) -> RidgeHead:
        """Return a head without samples on the CPU, with the same ridge, whose features are rows phi."""
        head = RidgeHead(self.statistic_width, **self._ridge_options())
        head.grow(classes)
        return head

    def _ridge_options(self) -> dict[str, Any]:
        ridge, trace = self._solver.ridge, self._trace_ridge
        return {"trace_ridge": trace, "variance_ridge": ridge.minimum, "gcv_margin": ridge.gcv_margin}

    def grow(self, classes: int) -> None:
        """Have at least `classes` columns; old ones keep their values, one without samples scores -inf."""
        if (more := classes - self.classes) > 0:
            self._sums = self._sums.widened(classes)
            self._solver.grow(more)

    def statistic_rows(self, features: Tensor) -> Tensor:
        """Return phi, float64 [N, D], of features [N, d]."""
        self._confirm_width(features)
        features = features.detach().to(self._sums.Q.device)
        if self._P is None:
            return features.double()
        missing = -len(features) % 8  # a product of one row rounds differently, so rows never come alone
        rows = F.pad(features.float(), (0, 0, 0, missing))
        return (rows @ self._P).relu().double()[: len(features)]

    def statistics_of(self, features: Tensor, targets: Tensor) -> Statistics:
        """Return the statistics of samples, to store, merge or remove; raise as `update` does.

        Args:
            features: [N, d].
            targets: int64 [N], columns that exist.
        """
        h, targets = self._checked(features, targets)
        return Statistics.of(self.summed_rows(h), targets, self.classes, outer=self.outer_rows(h))

    def statistics_from_parts(self, parts: PartsOfHead) -> Statistics:
        """Return the sum of parts: rows [r, D] with outer products to sum; by column a count and Q [D]."""
        total = Statistics.empty(self.statistic_width, self._sums.Q.device, self.classes)
        for rows, sums in parts:
            total.gram.add(self.outer_rows(torch.as_tensor(rows, device=total.Q.device)))
            for column, (count, Q) in sums.items():
                total.Q[:, column] += self.summed_rows(torch.as_tensor(Q, device=total.Q.device)[None])[0]
                total.counts[column] += count
        return total

    def update(self, features: Tensor, targets: Tensor, weight: int = 1) -> None:
        """Learn samples. Where memory runs out, nothing has changed.

        Args:
            features: [N, d].
            targets: int64 [N], columns that exist.
            weight: how many samples each of them stands for.

        Raises:
            ValueError: another shape, a column that does not exist, or a value that is not finite. Nothing
                has changed.
        """
        h, targets = self._checked(features, targets)
        rows, outer = self.summed_rows(h), self.outer_rows(h)
        learned = Statistics(self._sums.gram, *self._sums.class_sums_with(rows, targets, weight))
        growth = self._solver.before_learning(self._sums, learned)
        learned.gram.add(outer if weight == 1 else outer * weight**0.5)
        self._take_over(learned, growth)

    def savepoint(self) -> Rollback:
        """Return a callable that restores the state after one `grow` and one `update` or `remove`."""
        parts = self._sums.gram.savepoint(), self._solver.savepoint()
        return savepoint_of(self, "_sums", "_smallest", parts=parts)

    def merge(self, other: Statistics) -> None:
        """Learn what other statistics of the same features hold; column i there is column i here."""
        other = self._aligned(other)
        learned = Statistics(self._sums.gram, self._sums.Q + other.Q, self._sums.counts + other.counts)
        growth = self._solver.before_learning(self._sums, learned)
        learned.gram.add_sum(other.gram)
        self._take_over(learned, growth)

    def downdate(self, features: Tensor, targets: Tensor) -> None:
        """Forget learned samples: exact, up to rounding in float64.

        A second deletion of a sample whose direction many others share cannot be seen from sums: keep ids.

        Args:
            features: [N, d].
            targets: int64 [N].

        Raises:
            ForgettingError: these samples cannot all be among those learned, as a count or an eigenvalue
                would turn negative or features remain of a class with no samples left. Nothing has changed.
        """
        h, targets = self._checked(features, targets)
        Q, counts = sums_by_class(self.summed_rows(h), targets, self.classes)
        gram = self._sums.gram.copy()
        gram.add(self.outer_rows(h), sign=-1.0)
        self._replace(Statistics(gram, self._sums.Q - Q, self._sums.counts - counts))

    def remove(self, other: Statistics) -> None:
        """Forget by statistics that were kept (see `statistics_of`); raises like `downdate`."""
        self._replace(self._sums - self._aligned(other))

    def _select(self, columns: Sequence[int]) -> None:
        self._sums = self._sums.select(columns)
        self._solver.select(columns)

    def scores(self, features: Tensor) -> Tensor:
        """Return scores float64 [N, C] of features [N, d]; -inf for a class that the solve in use lacks."""
        return self._solver.scores(self._sums, self.statistic_rows(features))

    def last_solve_scores(self, features: Tensor) -> Tensor:
        """Return scores [N, C] of features [N, d]; of classes that the last solve has, by it alone."""
        return self._solver.last_solve_scores(self._sums, self.statistic_rows(features))

    def scores_refit(self, features: Tensor) -> Tensor:
        """Return scores [N, C] of features [N, d] by weights of all statistics, which `scores` may lack."""
        h = self.statistic_rows(features)
        return linear_scores(h, *self._solver.refit_weights(self._sums), self._sums.counts > 0)

    def uncertainty(self, features: Tensor) -> ScoreUncertainty:
        """Return the uncertainty of `scores_refit` of features [N, d]."""
        return self._solver.refit_uncertainty(self._sums, self.statistic_rows(features))

    def uncertainty_in_use(self, features: Tensor) -> ScoreUncertainty | None:
        """Return the uncertainty of `scores` of features [N, d]; None where it is not kept."""
        return self._solver.uncertainty(self._sums, self.statistic_rows(features))

    def leading_scores(self, features: Tensor) -> Tensor:
        """Return scores [N, C] refitted to the first d' features, [N, d']; only where `has_leading`."""
        W, b = self._solver.leading_weights(self._sums, features.shape[1])
        return linear_scores(features.double(), W, b, self._sums.counts > 0)

    def link(self, scores: Tensor) -> Tensor:
        """Return the logarithms [N, C] of scores [N, C], which estimate probabilities (see `log_scores`)."""
        return log_scores(scores)

    def exact_weights(self) -> tuple[Tensor, Tensor]:
        """Solve for all that is known now, use it from here on, and return W, float64 [D, C], and b [C]."""
        return self._solver.exact_weights(self._sums)

    def smallest_eigenvalue(self) -> float:
        """Return the smallest eigenvalue of G + lambda I as a share of lambda: 1 or a little more.

        Under 1/2 something was subtracted that had not been added. 0: nothing known. After an erasure it is
        known from the check that the erasure passed.
        """
        return self._smallest_of(self._sums) if self._smallest is None else self._smallest

    def removal_figures(self) -> Mapping[str, Any]:
        """Return the samples left, the smallest eigenvalue, and what rounding may have taken off it."""
        return {
            "samples_left": self._sums.total,
            "smallest_eigenvalue_over_lambda": self.smallest_eigenvalue(),
            "rounding_over_lambda": eigenvalue_rounding(self._sums, self._solver.uncentred_ridge(self._sums)),
        }

    def state_dict(self) -> State:
        """Return the statistics, and the weights in use with the solve that they belong to."""
        return {**self._sums.state_dict(), **self._solver.state_dict(self._sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the head that returned `state`, made with the same arguments."""
        self._sums = Statistics.from_state(state, self.statistic_width, self._sums.Q.device)
        self._solver.load_state_dict(state)
        self._smallest = None

    def _checked(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        h = self.learned_rows(features)
        targets = targets.to(h.device)
        check_fit(h, targets, self.classes)
        return h, targets

    def _aligned(self, other: Statistics) -> Statistics:
        if other.gram.width != self.statistic_width or other.classes > self.classes:
            raise ValueError(
                f"statistics of width {other.gram.width} with {other.classes} classes do not fit "
                f"a head of width {self.statistic_width} with {self.classes}"
            )
        return other.widened(self.classes)

    def _take_over(self, sums: Statistics, growth: Growth) -> None:
        """Have these sums from here on. Fails in no place, so that all of it happens."""
        self._sums, self._smallest = sums, None
        self._solver.after_learning(sums, growth)

    def _replace(self, left: Statistics) -> None:
        """Take over the statistics that erasing leaves, once they have been shown to be possible."""
        left, smallest = without_residue(left, self._sums), 0.0
        if left.total and (smallest := self._smallest_of(left)) < 0.5:
            raise ForgettingError(
                "an eigenvalue of what remains would be negative: not all of these samples are in it",
                hint="they were forgotten before, never learned, or their features were derived differently",
            )
        self._sums, self._smallest = left, smallest
        self._solver.after_erasure(left)

    def _smallest_of(self, left: Statistics) -> float:
        return smallest_eigenvalue(left.gram, self._solver.uncentred_ridge(left))
