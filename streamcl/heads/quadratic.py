"""Least squares on centred features, given by sums: its minimiser, and how far some weights are from it."""

from __future__ import annotations

import torch
from torch import Tensor

from streamcl.heads.solving import rarity
from streamcl.heads.statistics import Statistics

DEAD = 1e-6
"""Share of the mean variance under which a feature says nothing and its weights are held at zero."""


class Quadratic:
    """L(W) of sums: Hessian H = A + variance_ridge diag(var), A = sum of centred z^T z; gradient H W - B.

    A feature whose variance is nothing has its weights held at zero. variance, unit: [D], of each feature,
    and 1 / its standard deviation (0 where held). present: float64 [C], 1 where a class has samples.
    """

    def __init__(self, sums: Statistics, variance_ridge: float) -> None:
        total, counts = max(sums.total, 1), sums.counts.double()
        self.present = (counts > 0).double()
        self._mean = sums.Q.sum(1) / total  # [D]: every sample has one class
        A = sums.gram.full().addr_(self._mean, self._mean, alpha=-float(total))
        variance = (A.diagonal() / total).clamp(min=0.0)
        alive = variance > DEAD * variance.mean()
        self.variance = torch.where(alive, variance, 0.0)
        self.unit = torch.where(alive, variance, 1.0).rsqrt() * alive
        A *= alive[:, None] * alive
        A.diagonal().add_(torch.where(alive, variance_ridge * variance, 1.0))
        self.H = A
        self._frequency = self.present / self.present.sum().clamp(min=1.0)
        self.B = (sums.Q - torch.outer(self._mean, counts)) * rarity(counts, total) * alive[:, None]  # [D, C]
        self._factor = torch.linalg.cholesky(self.H)

    def minimiser(self) -> Tensor:
        """W_r*, [D, C]; rows lie together, as in restored weights, or products with it would round apart."""
        return torch.cholesky_solve(self.B, self._factor).contiguous()

    def distance(self, W: Tensor) -> Tensor:
        """W - W_r*: H^-1 times the slope at W, computed there."""
        return torch.cholesky_solve(self.H @ W - self.B, self._factor)

    def newton(self, W: Tensor) -> Tensor:
        """W after one Newton step, which ends at the minimiser."""
        return (W - self.distance(W)).contiguous()

    def nats(self, W: Tensor, noise: float) -> float | None:
        """|W - W_r*|^2 / (2 noise^2) in units of the features' standard deviations; None without noise.

        Two Gaussians around W and W_r* with the covariance of the noise are so far apart (Kullback-Leibler):
        it bounds what W + noise tells of samples that W_r* has never seen (arXiv 2012.13431, section 4).
        """
        if not noise:
            return None
        return float((self.distance(W).square() * self.variance[:, None]).sum()) / (2 * noise**2)

    def intercept(self, W: Tensor) -> Tensor:
        """[C]: the scores at the mean feature are the classes' shares."""
        return self._frequency - self._mean @ W
