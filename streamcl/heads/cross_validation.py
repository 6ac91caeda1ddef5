"""How strong a ridge the data asks for: the error on each sample, left out in turn, from the sums alone.

Generalised cross-validation (Golub, Heath and Wahba, Technometrics 1979) is leaving one out with every
sample's leverage replaced by their mean. It needs no sample, only G, Q and the counts, so nothing is set
aside, and what is forgotten has no part in the choice any more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from streamcl.heads.solving import variance
from streamcl.heads.statistics import Statistics
from streamcl.protocols import State

STEPS = tuple(10 ** (k / 4) for k in range(11))
"""Ridges that are tried, as multiples of the least of them."""

MAX_FEATURES = 1024
"""Features that are looked at, at most, evenly spaced. All 3,840 take nine times as long and ask for the same
ridge or a third of it; 512 ask for twice as much."""


@dataclass(frozen=True, slots=True)
class AdaptiveRidge:
    """A variance ridge, its least value, and the number of samples when it was found.

    Its value depends on the sums alone, and on how often they have doubled since. gcv_margin None: fixed.
    """

    value: float | None
    minimum: float | None
    gcv_margin: float | None
    found_at: int = 0

    @classmethod
    def of(cls, minimum: float | None, gcv_margin: float | None) -> AdaptiveRidge:
        """Return the least value, not searched yet; raise ValueError where a number is not above zero."""
        for name, value in (("variance_ridge", minimum), ("gcv_margin", gcv_margin)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}, expected a positive number")
        return cls(minimum, minimum, None if minimum is None else gcv_margin)

    def is_outdated(self, sums: Statistics) -> bool:
        """Return whether the samples have doubled since it was found."""
        return self.gcv_margin is not None and sums.total >= 2 * self.found_at

    def searched(self, sums: Statistics) -> AdaptiveRidge:
        """Return the ridge for sums that have only grown since; itself where it never changes."""
        if self.gcv_margin is None or self.minimum is None or self.found_at == sums.total:
            return self
        return replace(
            self, value=cross_validated_ridge(sums, self.minimum, self.gcv_margin), found_at=sums.total
        )

    def reset(self) -> AdaptiveRidge:
        """Return the least value, to be found anew, after samples were subtracted."""
        return replace(self, value=self.minimum, found_at=0)

    def state_dict(self) -> State:
        """Return the value and when it was found; nothing where it never changes."""
        return {} if self.gcv_margin is None else {"strength": self.value, "found_at": self.found_at}

    def with_state(self, state: Mapping[str, Any]) -> AdaptiveRidge:
        """Return the ridge that gave `state`."""
        value = self.minimum if self.gcv_margin is None else state.get("strength", self.minimum)
        return replace(self, value=value, found_at=int(state.get("found_at", 0)))


def cross_validated_ridge(statistics: Statistics, variance_ridge: float, gcv_margin: float) -> float:
    """Return the mean, geometric, of `variance_ridge` and the error's minimiser over `gcv_margin`, if more.

    The error asks for more than accuracy does, most where classes are many: on CIFAR-100 six times what is
    best. So half of it is taken, in the logarithm, and none of it within gcv_margin.
    """
    tried = [gcv_margin * variance_ridge * step for step in STEPS]
    fits = explained_shares(statistics, tried)
    best = int(fits.argmax())
    return variance_ridge * math.sqrt(STEPS[best])


def explained_shares(statistics: Statistics, ridges: list[float]) -> Tensor:
    """Return float64 [R]: the share of the targets, 0 to 1, that R ridges explain on samples left out.

    The mean over classes of the squared correlation of a sample's target with the score that it would have
    had, had it not been learned: the scores' size, for which squared error asks for a
    ridge twice as strong, is of no use for accuracy. Ridges are in units of samples, times each feature's
    variance.
    """
    total, width = statistics.total, statistics.gram.width
    squares = _squares(statistics)
    if squares is None:
        return torch.zeros(len(ridges), dtype=torch.float64)
    values, squared, targets = squares  # [m], [m, C'], [C']
    fits = []
    for ridge in ridges:
        scale = values + ridge * len(values) / width  # fewer features, each with as much less of a ridge
        leverage = float((values / scale).sum()) / total  # the intercept's moves no correlation
        fitted = (squared / scale[:, None]).sum(dim=0)  # [C']: scores times targets
        sizes = (squared * (values / scale.square())[:, None]).sum(dim=0)  # [C']: scores times scores
        agreed = (fitted - leverage * targets).clamp(min=0)  # both, of samples left out, times 1 - leverage
        size = sizes - 2 * leverage * fitted + leverage**2 * targets
        size = size.clamp(min=1e-9 * targets)  # of a score that only repeats the target, rounding is left
        fits.append((agreed.square() / (size * targets)).mean())
    return torch.stack(fits)


def _squares(statistics: Statistics) -> tuple[Tensor, Tensor, Tensor] | None:
    """Eigenvalues of the correlations [m], squares of Q in their basis [m, C'], and of the targets [C'].

    Of the classes that have samples; None where fewer than two have.
    """
    total = statistics.total
    known = statistics.counts > 0
    if int(known.sum()) < 2:
        return None
    counts = statistics.counts[known].double()
    step = -(-statistics.gram.width // MAX_FEATURES)
    mean = statistics.Q.sum(dim=1)[::step] / total  # [m]
    A = statistics.gram.subsampled(step).addr_(mean, mean, alpha=-total)
    spread = variance(statistics)[::step]
    scale = torch.where(spread > 0, spread.rsqrt(), 0.0)
    A.mul_(scale).mul_(scale[:, None])
    values, basis = torch.linalg.eigh(A)  # reads the lower triangle only
    Q = (statistics.Q[::step, known] - torch.outer(mean, counts)) * scale[:, None]
    return values.clamp(min=0), (basis.T @ Q).square(), counts - counts.square() / total
