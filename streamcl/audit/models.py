"""Closed-form models by the dozen: each solved from sums without another share of the retained samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from streamcl.audit.material import Examples
from streamcl.errors import ForgettingError
from streamcl.heads.ridge import RidgeHead, Statistics


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """One model: scores = h W + b, minus infinity where not alive. W [D, C], b [C], alive bool [C]."""

    W: Tensor
    b: Tensor
    alive: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Scores, float64 [N, C], of features [N, D]."""
        return (features.double() @ self.W + self.b).masked_fill(~self.alive, -torch.inf)

    def without(self, column: int | None) -> Weights:
        """The same weights, unable to name one class (a logit mask)."""
        if column is None:
            return self
        alive = self.alive.clone()
        alive[column] = False
        return replace(self, alive=alive)


class ClosedForm:
    """Makes ridge models as `RidgeHead` does, from sums over features that are already mapped, float64."""

    def __init__(
        self, width: int, columns: int, *, relative_lambda: float, shrinkage: float | None = None
    ) -> None:
        self.width, self.columns = width, columns
        self._relative_lambda, self._shrinkage = relative_lambda, shrinkage

    def head(self) -> RidgeHead:
        """A head that knows nothing, with all columns."""
        head = RidgeHead(self.width, relative_lambda=self._relative_lambda, shrinkage=self._shrinkage)
        head.grow(self.columns)
        return head

    def measure(self, examples: Examples) -> Statistics:
        """The sums of these examples."""
        return self.head().measure(examples.features, examples.labels)

    def solve(self, statistics: Statistics) -> Weights:
        """The model of these sums. Raises ForgettingError where they are sums of no samples."""
        head = self.head()
        head.merge(statistics)
        try:
            W, b = head.exact_weights()
        except RuntimeError as error:
            raise ForgettingError(
                "the audited statistics cannot be solved: more was taken out of them than was in them"
            ) from error
        return Weights(W, b, statistics.counts > 0)


def combined(one: Statistics, other: Statistics, sign: float = 1.0) -> Statistics:
    """one + sign * other, as fresh sums."""
    gram = one.gram.copy()
    gram.add_sum(other.gram, sign)
    return Statistics(gram, one.Q + sign * other.Q, one.counts + int(sign) * other.counts)


def leave_outs(count: int, samples: int, share: float, rng: np.random.Generator) -> Tensor:
    """bool [count, samples]: in each row another random `share` of the samples is True, that is left out."""
    size = max(1, round(share * samples))
    rows = np.zeros((count, samples), dtype=bool)
    for row in rows:
        row[rng.choice(samples, size, replace=False)] = True
    return torch.from_numpy(rows)


def leaving_out(
    form: ClosedForm, statistics: Statistics, retain: Examples, left_out: Tensor
) -> Iterator[Statistics]:
    """The sums without the retained examples of each row of left_out, bool [M, N], one after the other."""
    for row in left_out:
        yield combined(statistics, form.measure(retain.at(row)), -1.0)


def disagreement(one: Statistics, other: Statistics) -> float:
    """The largest difference of two models' sums, relative to the largest sum."""
    gram = combined(one, other, -1.0).gram.largest / max(other.gram.largest, 1e-300)
    Q = float((one.Q - other.Q).abs().max() / other.Q.abs().max().clamp_min(1e-300))
    return max(gram, Q)
