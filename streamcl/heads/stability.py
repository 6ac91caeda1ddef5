"""How stable a prediction of a ridge head is, and how new its input: from the sums alone, in float64.

Models whose loss is at most eps above the least form an ellipsoid, tr(Delta^T A Delta) <= eps: the Rashomon
set of arXiv 2402.00728, of which dropout explores a few per cent. In it the score of class c at an input x
has the range 2 sqrt(eps q) r_c, q = 1 / n + (x - m)^T A^-1 (x - m), with the mean feature m, n samples, and
the factor r_c of the class's column. The second term of q, the leverage, says how new x is. How far scores
move where other samples of the same stream are learned is less: see `RidgeStability.uncertainty`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from streamcl.heads.gram import Cholesky
from streamcl.heads.solving import NormalEquations
from streamcl.protocols import State

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
"""Points and weights of Gauss-Hermite quadrature: 12 of them move a probability by up to 0.002."""


class ScoreUncertainty(NamedTuple):
    """Of N inputs the variance of each score, [N, C], and how new they are, [N].

    novelty: the leverage, in units of the one that a new sample of the same stream has on average.
    """

    variance: Tensor
    novelty: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SolveUncertainty:
    """The figures that, beside a solve's factor, give the uncertainty of its scores.

    mean: float32 [D]. ridge: float32 [D]. scale: float64 [C]. total: samples. See `RidgeStability` for
    the rest.
    """

    mean: Tensor
    ridge: Tensor
    scale: Tensor
    total: int
    residual_variance: float
    usual_leverage: float

    def uncertainty(self, factor: Cholesky, h: Tensor) -> ScoreUncertainty:
        """Return the uncertainty of the scores of rows h [N, D]; see `RidgeStability.uncertainty`.

        Args:
            factor: of the solve's A [D, D].
            h: rows, float64 [N, D].
        """
        return _uncertainty(self, factor, h, self)

    def grown(self, more: int) -> SolveUncertainty:
        """Return it with so many more class columns, which no solve has seen."""
        return replace(self, scale=torch.cat([self.scale, self.scale.new_ones(more)]))

    def select(self, columns: Sequence[int]) -> SolveUncertainty:
        """Return it for these class columns, in this order."""
        return replace(self, scale=self.scale[list(columns)])

    def state_dict(self) -> State:
        """Return all of it."""
        arrays = {name: getattr(self, name).cpu().numpy().copy() for name in ("mean", "ridge", "scale")}
        numbers = {name: getattr(self, name) for name in ("total", "residual_variance", "usual_leverage")}
        return {**arrays, **numbers}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device | str) -> SolveUncertainty:
        """Return the uncertainty that returned `state`."""
        mean, ridge, scale = (torch.tensor(state[name], device=device) for name in ("mean", "ridge", "scale"))
        numbers = (state[name] for name in ("total", "residual_variance", "usual_leverage"))
        return cls(mean, ridge, scale, *numbers)


class RidgeStability:
    """The uncertainty of a ridge regression: how its scores vary over other samples of the same stream.

    total: how many samples it is of.
    """

    def __init__(self, equations: NormalEquations) -> None:
        self._equations = equations
        self.total = int(equations.counts.sum())

    def uncertainty(self, h: Tensor) -> ScoreUncertainty:
        """Return the uncertainty of the scores of rows h [N, D].

        Over other samples of the same stream, the score of class c at x has the variance s^2 r_c^2 (1 / n +
        (x - m)^T A^-1 G A^-1 (x - m)), with centred G and the residual's variance s^2.
        """
        return _uncertainty(self._equations, self._equations.factor, h, self)

    def of_solve(self) -> SolveUncertainty:
        """Return the same in float32; takes as long as a decomposition."""
        equations = self._equations
        return SolveUncertainty(
            equations.mean.float(),
            equations.ridge.float(),
            equations.scale,
            self.total,
            self.residual_variance,
            self.usual_leverage,
        )

    @cached_property
    def usual_leverage(self) -> float:
        """The leverage that a new sample of the same stream has on average: df / (n - df).

        By the mean of the learned samples' own leverages, df / n, each left out.
        """
        df = self.degrees_of_freedom - 1
        return max(df / (self.total - df), 1 / self.total)

    @cached_property
    def degrees_of_freedom(self) -> float:
        """The trace of A^-1 G, of centred G, and one more for the intercept."""
        held = self._equations.factor.inverse_diagonal() * self._equations.ridge
        return len(held) + 1 - float(held.sum())

    @cached_property
    def residual_variance(self) -> float:
        """Mean square of what a score misses of its target, 0 or 1, of a sample left out.

        By generalised cross-validation n RSS / (n - df)^2 a class, with RSS from the sums.
        """
        equations, counts = self._equations, self._equations.counts.double()
        W = equations.factor.solve(equations.moments)
        targets = counts - counts.square() / self.total  # [C], squares of 0 and 1 about their mean
        fitted = (W * equations.moments).sum(dim=0) + (W.square() * equations.ridge[:, None]).sum(dim=0)
        freedom = max(self.total - self.degrees_of_freedom, 1.0) ** 2 / self.total
        return max(float((targets - fitted).sum()), 0.0) / freedom / max(int((counts > 0).sum()), 1)


def _uncertainty(
    solved: NormalEquations | SolveUncertainty,
    factor: Cholesky,
    h: Tensor,
    figures: SolveUncertainty | RidgeStability,
) -> ScoreUncertainty:
    """Return the uncertainty of the scores of rows h [N, D], computed in the precision of `solved`."""
    centred = (h.to(solved.mean.dtype) - solved.mean).T
    x = factor.solve(centred)  # [D, N]
    leverage = (x * centred).double().sum(dim=0).clamp(min=0)
    spread = (leverage - (x.square() * solved.ridge[:, None]).double().sum(dim=0)).clamp(min=0)
    variance = figures.residual_variance * torch.outer(spread + 1 / figures.total, solved.scale.square())
    return ScoreUncertainty(variance, leverage / figures.usual_leverage)


def flip_probability(scores: Tensor, variance: Tensor) -> Tensor:
    """Return the probability that another class has the highest score, [N], of independent normal scores.

    NaN where no class has a score.

    Args:
        scores: [N, C], the means; minus infinity for a class that cannot be predicted.
        variance: of each score, [N, C].
    """
    if not scores.shape[1]:
        return scores.new_full((len(scores),), math.nan)
    best, column = scores.max(dim=1, keepdim=True)
    deviation = variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()
    margin = (best - scores).scatter(1, column, math.inf)
    own = deviation.gather(1, column)
    stays = torch.zeros_like(best[:, 0], dtype=torch.float64)
    for node, weight in zip(NODES, WEIGHTS / WEIGHTS.sum(), strict=True):
        stays += weight * torch.special.log_ndtr((margin + node * own) / deviation).sum(dim=1).exp()
    return torch.where(best[:, 0].isfinite(), (1 - stays).clamp(0, 1), math.nan)
