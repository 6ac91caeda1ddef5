"""Least squares on centred features given by sums: weights, scores, and how far weights are from the best."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streamcl.heads.gram import Cholesky
from streamcl.heads.statistics import Statistics

RARITY_POWER = 0.5
"""Power of its rarity by which the column of a class is raised: 0 lets frequent classes lead, 1 none."""

DEAD_FEATURE_SHARE = 1e-6
"""Share of the mean variance under which a feature says nothing and its weights are held at zero."""

MIN_RIDGE = 1e-9
"""Least ridge as a share of the mean square of the features, where sums are singular up to rounding."""


def linear_scores(h: Tensor, W: Tensor, b: Tensor, known: Tensor) -> Tensor:
    """Return h W + b, float64 [N, C]; minus infinity for classes that are not known.

    Args:
        h: [N, D].
        W: float64 [D, C].
        b: float64 [C].
        known: bool [C].
    """
    return (h.double() @ W + b).masked_fill(~known, -math.inf)


@dataclass(frozen=True, slots=True, eq=False)
class NormalEquations:
    """A W = M, the centred normal equations of a ridge regression, with A factored.

    factor: of A = centred G + diag(ridge), [D, D]. moments: M = Q - mean n^T, [D, C]. mean: of the features,
    [D]. ridge: [D]. scale: [C], by which the column of each class is raised. at_mean: [C], the scores at the
    mean feature. counts: int64 [C], samples of each class. All but the counts are float64.
    """

    factor: Cholesky
    moments: Tensor
    mean: Tensor
    ridge: Tensor
    scale: Tensor
    at_mean: Tensor
    counts: Tensor

    def solve(self) -> tuple[Tensor, Tensor]:
        """Return the weights W [D, C] and b [C]."""
        W = self.factor.solve(self.moments) * self.scale
        return W, self.at_mean - self.mean @ W


def normal_equations(
    trace_ridge: float,
    statistics: Statistics,
    variance_ridge: float | None = None,
    width: int | None = None,
) -> NormalEquations:
    """Return the normal equations of `solve_ridge`, for one sample or more.

    width: of the first so many features alone, with the ridges that these have among all; None: all.
    """
    gram, Q, counts = statistics.gram, statistics.Q, statistics.counts
    total = statistics.total
    mean = Q.sum(dim=1) / total  # [D], as every sample has one class
    centre = mean[None] * math.sqrt(total)  # G less its outer product is of centred features
    if variance_ridge is None:
        trace = gram.trace - float(centre.square().sum())
        ridge = mean.new_full((gram.width,), trace_ridge * max(trace, 1e-9 * gram.trace) / gram.width)
    else:
        ridge = variance_ridge * variance(statistics)
    ridge = torch.where(ridge > 0, ridge, 1.0)  # no variance at all: any ridge gives W = 0
    moments = Q - torch.outer(mean, counts.double())
    if width is not None:
        gram, centre = gram.leading(width), centre[:, :width]
        mean, ridge, moments = mean[:width], ridge[:width], moments[:width]
    try:
        factor = gram.regularised(ridge, less=centre)
    except ArithmeticError:  # the variance is rounding alone: one picture again and again
        floor = max(MIN_RIDGE * gram.trace / gram.width, torch.finfo(ridge.dtype).tiny)
        ridge = ridge.clamp(min=floor)
        factor = gram.regularised(ridge, less=centre)
    return NormalEquations(factor, moments, mean, ridge, *scale_and_offset(counts, variance_ridge), counts)


def scale_and_offset(counts: Tensor, variance_ridge: float | None) -> tuple[Tensor, Tensor]:
    """Return the scale of each class's column and its score at the mean feature, float64 [C] each.

    Args:
        counts: int64 [C], samples of each class, one or more in all.
        variance_ridge: of the solve; None where it has another ridge.
    """
    total = int(counts.sum())
    if variance_ridge is None:
        return torch.ones_like(counts, dtype=torch.float64), counts.double() / total
    at_mean = torch.where(counts > 0, 1.0 / int((counts > 0).sum()), 0.0).double()
    return rarity(counts, total).double(), at_mean  # else few samples are outvoted


def log_scores(scores: Tensor) -> Tensor:
    """Return log softplus(sqrt(C) f) of the scores f [N, C] of regression to one-hot targets, [N, C].

    Such a score estimates the probability of its class, with an error of some 1 / sqrt(C) where C classes are
    known. The softmax of scores is too sure of those near 1, and not sure enough of small ones: with 81 and
    100 classes and the best factor its calibration error was 7 to 9 %, and 4 to 5 % with logarithms.

    Args:
        scores: [N, C], minus infinity for classes that cannot be predicted, which do not count.
    """
    scaled = scores.double() * scores.isfinite().sum(dim=1, keepdim=True).double().sqrt()
    low = scaled - scaled.exp() / 2  # what follows is -infinity there, by rounding
    return torch.where(scaled < -30, low, torch.logaddexp(scaled, scaled.new_zeros(())).log())


def solve_ridge(
    trace_ridge: float, statistics: Statistics, variance_ridge: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the weights W [D, C] and b [C], float64, of centred ridge regression (see RidgeHead).

    A float32 Cholesky with one or two steps of refinement takes 0.8 to 1 of the time, which buys too little.

    Args:
        trace_ridge: the ridge as a share of the mean eigenvalue of the centred G.
        statistics: G, Q and the counts.
        variance_ridge: the ridge in samples, times each feature's variance; None to use `trace_ridge`.
    """
    if statistics.total == 0:
        return torch.zeros_like(statistics.Q), torch.zeros_like(statistics.Q[0])
    return normal_equations(trace_ridge, statistics, variance_ridge).solve()


def is_due(
    counts: Tensor,
    solved: Tensor,
    grown: Tensor,
    refit_fraction: float,
    *,
    apart: int = 0,
    scores_new: bool = False,
) -> bool:
    """Return whether weights are to be solved anew.

    They are where a share `refit_fraction` of all samples is new, where a class that has grown is new, as
    without weights it would score 0, which may be the best, or where such a class has doubled.

    Args:
        counts: int64 [C], samples of each class now.
        solved: int64 [C], those that the weights were solved for.
        grown: bool [C], the classes that gained samples.
        refit_fraction: a share in [0, 1].
        apart: the fewest new samples for which a class that has doubled counts.
        scores_new: whether new classes have scores before a solve, so that they count as doubled ones do.
    """
    total = int(counts.sum())
    waiting = total - int(solved.sum())
    fresh = not scores_new and bool((solved == 0)[grown].any())
    doubled = waiting >= apart and bool((counts >= 2 * solved)[grown].any())
    return fresh or doubled or waiting > refit_fraction * total


def rarity(counts: Tensor, total: int) -> Tensor:
    """Return [C], by what the column of each class is raised, so that a target of 1 is as rare as its class.

    Args:
        counts: [C], samples of each class.
        total: their sum.
    """
    present = counts > 0
    share = 1.0 / max(int(present.sum()), 1)
    return torch.where(present, share * total / counts.clamp(min=1), 1.0) ** RARITY_POWER


def variance(statistics: Statistics) -> Tensor:
    """Return [D], the features' variances, as `floored_variance`."""
    total = max(statistics.total, 1)
    mean = statistics.Q.sum(dim=1) / total
    return floored_variance((statistics.gram.diagonal() / total - mean.square()).clamp(min=0.0))


def floored_variance(spread: Tensor) -> Tensor:
    """Return variances [D], none below a millionth of their mean.

    Args:
        spread: [D], the features' variances.
    """
    return spread.clamp(min=float(1e-6 * spread.mean()))


def random_projection(width: int, wide: int, seed: int) -> Tensor:
    """Return P [d, D], standard normal, float32."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((width, wide), dtype=np.float32))


class Quadratic:
    """L(W) of sums: Hessian H = A + variance_ridge diag(var), A = sum of centred z^T z; gradient H W - B.

    A feature without variance has its weights held at zero. variance, unit: [D], of each feature,
    and 1 / its standard deviation (0 where held). present: float64 [C], 1 where a class has samples.
    """

    def __init__(self, sums: Statistics, variance_ridge: float) -> None:
        total, counts = max(sums.total, 1), sums.counts.double()
        self.present = (counts > 0).double()
        self._mean = sums.Q.sum(1) / total  # [D]: every sample has one class
        A = sums.gram.full().addr_(self._mean, self._mean, alpha=-float(total))
        variance = (A.diagonal() / total).clamp(min=0.0)
        alive = variance > DEAD_FEATURE_SHARE * variance.mean()
        self.variance = torch.where(alive, variance, 0.0)
        self.unit = torch.where(alive, variance, 1.0).rsqrt() * alive
        A *= alive[:, None] * alive
        A.diagonal().add_(torch.where(alive, variance_ridge * variance, 1.0))
        self.H = A
        self._frequency = self.present / self.present.sum().clamp(min=1.0)
        self.B = (sums.Q - torch.outer(self._mean, counts)) * rarity(counts, total) * alive[:, None]  # [D, C]
        self._factor = torch.linalg.cholesky(self.H)

    def minimiser(self) -> Tensor:
        """Return W_r*, [D, C], contiguous as restored weights are, so that products with it round alike."""
        return torch.cholesky_solve(self.B, self._factor).contiguous()

    def distance(self, W: Tensor) -> Tensor:
        """Return W - W_r* [D, C], for W [D, C]: H^-1 times the slope at W, computed there."""
        return torch.cholesky_solve(self.H @ W - self.B, self._factor)

    def newton(self, W: Tensor) -> Tensor:
        """Return W [D, C] after one Newton step from W [D, C], which ends at the minimiser."""
        return (W - self.distance(W)).contiguous()

    def nats(self, W: Tensor, noise: float) -> float | None:
        """Return |W - W_r*|^2 / (2 noise^2) in nats; None without noise.

        Two Gaussians around W and W_r* with the covariance of the noise are so far apart (Kullback-Leibler):
        it bounds what W + noise reveals of samples that W_r* has never seen (arXiv 2012.13431, section 4).

        Args:
            W: float64 [D, C].
            noise: its standard deviation, in units of 1 / each feature's standard deviation.
        """
        if not noise:
            return None
        return float((self.distance(W).square() * self.variance[:, None]).sum()) / (2 * noise**2)

    def intercept(self, W: Tensor) -> Tensor:
        """Return b [C] for W [D, C], by which the scores at the mean feature are the classes' shares."""
        return self._frequency - self._mean @ W
