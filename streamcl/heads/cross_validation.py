"""How strong a ridge the data asks for: the error on each sample, left out in turn, from the sums alone.

Generalised cross-validation (Golub, Heath and Wahba, Technometrics 1979) is leaving one out with every
sample's leverage replaced by their mean. It needs no sample, only G, Q and the counts, so nothing is set
aside, and what is forgotten has no part in the choice any more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl.heads.solving import floored_variance, variance
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
    return _strengthened(_spectrum(statistics), variance_ridge, gcv_margin)


def cross_validated_ridge_of(
    rows: Tensor, targets: Tensor, variance_ridge: float, gcv_margin: float
) -> float:
    """Return `cross_validated_ridge` of the sums of samples, which takes less time where these are few.

    Args:
        rows: float64 [N, D].
        targets: int64 [N].
        variance_ridge: the smallest ridge, in samples.
        gcv_margin: as of `AdaptiveRidge`.
    """
    return _strengthened(_spectrum_of(rows, targets), variance_ridge, gcv_margin)


def explained_shares(statistics: Statistics, ridges: list[float]) -> Tensor:
    """Return float64 [R]: the share of the targets, 0 to 1, that R ridges explain on samples left out.

    The mean over classes of the squared correlation of a sample's target with the score that it would have
    had, had it not been learned: the scores' size, for which squared error asks for a
    ridge twice as strong, is of no use for accuracy. Ridges are in units of samples, times each feature's
    variance.
    """
    return _explained(_spectrum(statistics), ridges)


class _Spectrum(NamedTuple):
    """Correlations of m of D features, decomposed, with the classes in the basis of their eigenvectors.

    values: eigenvalues, times the samples, [m] or those that are not zero. squared: squares of Q in their
    basis, [m, C']. targets: sums of squares of the targets about their means, [C']. Of the classes that have
    samples.
    """

    values: Tensor
    squared: Tensor
    targets: Tensor
    total: int
    features: int
    width: int


def _strengthened(spectrum: _Spectrum | None, variance_ridge: float, gcv_margin: float) -> float:
    fits = _explained(spectrum, [gcv_margin * variance_ridge * step for step in STEPS])
    return variance_ridge * math.sqrt(STEPS[int(fits.argmax())])


def _explained(spectrum: _Spectrum | None, ridges: list[float]) -> Tensor:
    if spectrum is None:
        return torch.zeros(len(ridges), dtype=torch.float64)
    values, squared, targets, total, features, width = spectrum
    fits = []
    for ridge in ridges:
        scale = values + ridge * features / width  # fewer features, each with as much less of a ridge
        leverage = float((values / scale).sum()) / total  # the intercept's moves no correlation
        fitted = (squared / scale[:, None]).sum(dim=0)  # [C']: scores times targets
        sizes = (squared * (values / scale.square())[:, None]).sum(dim=0)  # [C']: scores times scores
        agreed = (fitted - leverage * targets).clamp(min=0)  # both, of samples left out, times 1 - leverage
        size = sizes - 2 * leverage * fitted + leverage**2 * targets
        size = size.clamp(min=1e-9 * targets)  # of a score that only repeats the target, rounding is left
        fits.append((agreed.square() / (size * targets)).mean())
    return torch.stack(fits)


def _spectrum(statistics: Statistics) -> _Spectrum | None:
    """Return the spectrum of sums; None where fewer than two classes have samples."""
    total = statistics.total
    known = statistics.counts > 0
    if int(known.sum()) < 2:
        return None
    counts = statistics.counts[known].double()
    step = _step(statistics.gram.width)
    mean = statistics.Q.sum(dim=1)[::step] / total  # [m]
    A = statistics.gram.subsampled(step).addr_(mean, mean, alpha=-total)
    spread = variance(statistics)[::step]
    scale = torch.where(spread > 0, spread.rsqrt(), 0.0)
    A.mul_(scale).mul_(scale[:, None])
    values, basis = torch.linalg.eigh(A)  # reads the lower triangle only
    Q = (statistics.Q[::step, known] - torch.outer(mean, counts)) * scale[:, None]
    squared, targets = (basis.T @ Q).square(), counts - counts.square() / total
    return _Spectrum(values.clamp(min=0), squared, targets, total, len(values), statistics.gram.width)


def _spectrum_of(rows: Tensor, targets: Tensor) -> _Spectrum | None:
    """Return the spectrum of the sums of rows [N, D], by their products [N, N]."""
    counts = torch.bincount(targets)
    known = counts > 0
    if int(known.sum()) < 2:
        return None
    looked_at = rows[:, :: _step(rows.shape[1])]  # [N, m]
    centred = looked_at - looked_at.mean(dim=0)
    spread = floored_variance((rows - rows.mean(dim=0)).square().mean(dim=0))[:: _step(rows.shape[1])]
    scaled = centred * torch.where(spread > 0, spread.rsqrt(), 0.0)
    values, basis = torch.linalg.eigh(scaled @ scaled.T)  # [N], the eigenvalues that are not zero among them
    values, counts = values.clamp(min=0), counts[known].double()
    one_hot = F.one_hot(targets)[:, known].double()
    squared = (basis.T @ one_hot).square() * values[:, None]
    spread_of_targets = counts - counts.square() / len(rows)
    return _Spectrum(values, squared, spread_of_targets, len(rows), looked_at.shape[1], rows.shape[1])


def _step(width: int) -> int:
    return -(-width // MAX_FEATURES)
