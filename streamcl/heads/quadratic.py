"""Least squares on centred features, given by sums: its minimiser, and how far some weights are from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamcl.heads.gram import Gram
from streamcl.heads.ridge import BALANCE, Statistics
from streamcl.protocols import State

DEAD = 1e-6
"""Share of the mean variance under which a feature says nothing and its weights are held at zero."""


class Quadratic:
    """L(W) of sums: its Hessian H = A + shrinkage diag(var), A = sum of centred z^T z, and H W - B its slope.

    A feature whose variance is nothing has its weights held at zero. variance, unit: [D], of each feature,
    and 1 / its standard deviation (0 where held). present: float64 [C], 1 where a class has samples.
    """

    def __init__(self, sums: Statistics, shrinkage: float) -> None:
        total, counts = max(sums.total, 1), sums.counts.double()
        self.present = (counts > 0).double()
        self._mean = sums.Q.sum(1) / total  # [D]: every sample has one class
        A = sums.gram.full().addr_(self._mean, self._mean, alpha=-float(total))
        variance = (A.diagonal() / total).clamp(min=0.0)
        alive = variance > DEAD * variance.mean()
        self.variance = torch.where(alive, variance, 0.0)
        self.unit = torch.where(alive, variance, 1.0).rsqrt() * alive
        A *= alive[:, None] * alive
        A.diagonal().add_(torch.where(alive, shrinkage * variance, 1.0))
        self.H = A
        share = 1.0 / max(float(self.present.sum()), 1.0)
        self._frequency = share * self.present
        raised = torch.where(counts > 0, share * total / counts.clamp(min=1), 1.0) ** BALANCE
        self.B = (sums.Q - torch.outer(self._mean, counts)) * raised * alive[:, None]  # [D, C]
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


def nothing(width: int, device: torch.device | str = "cpu", classes: int = 0) -> Statistics:
    """The sums of no samples."""
    Q = torch.zeros(width, classes, dtype=torch.float64, device=device)
    return Statistics(Gram(width, device), Q, torch.zeros(classes, dtype=torch.int64, device=device))


def measured(z: Tensor, targets: Tensor, classes: int) -> Statistics:
    """The sums of samples z [N, D] of targets int64 [N], columns below `classes`."""
    rows = z.detach().double()
    gram = Gram(rows.shape[1], rows.device)
    gram.add(rows)
    Q = rows.new_zeros(classes, rows.shape[1]).index_add_(0, targets, rows).T.contiguous()
    return Statistics(gram, Q, targets.bincount(minlength=classes))


def combined(one: Statistics, other: Statistics, sign: int = 1) -> Statistics:
    """one + sign * other as sums of their own; the narrower has fewer classes, the first ones."""
    gram = one.gram.copy()
    gram.add_sum(other.gram, sign=sign)
    classes = max(one.Q.shape[1], other.Q.shape[1])
    one, other = widened(one, classes - one.Q.shape[1]), widened(other, classes - other.Q.shape[1])
    return Statistics(gram, one.Q + sign * other.Q, one.counts + sign * other.counts)


def widened(sums: Statistics, more: int) -> Statistics:
    """The sums with so many more classes, of which nothing is known."""
    return selected(sums, [*range(sums.Q.shape[1]), *[-1] * more]) if more else sums


def selected(sums: Statistics, columns: Sequence[int]) -> Statistics:
    """The sums with these class columns, in this order; -1 is one of which nothing is known."""
    return Statistics(sums.gram, columns_of(sums.Q, columns), columns_of(sums.counts, columns))


def columns_of(values: Tensor, columns: Sequence[int]) -> Tensor:
    """values [..., len(columns)]: these last-axis entries, in this order; -1 is zero."""
    padded = torch.cat([values, values.new_zeros(*values.shape[:-1], 1)], dim=-1)
    return padded[..., torch.tensor(list(columns), dtype=torch.int64, device=values.device)]


def exported(sums: Statistics) -> State:
    """The sums as arrays."""
    arrays = {"Q": sums.Q, "counts": sums.counts}
    plain = {name: array.cpu().numpy().copy() for name, array in arrays.items()}
    return {"gram": sums.gram.state_dict(), **plain}


def imported(state: Mapping[str, Any], width: int, device: torch.device | str) -> Statistics:
    """The sums that were exported, of features of that width."""
    gram = Gram(width, device)
    gram.load_state_dict(state["gram"])
    Q, counts = (torch.tensor(np.asarray(state[name])).to(device) for name in ("Q", "counts"))
    return Statistics(gram, Q, counts)
