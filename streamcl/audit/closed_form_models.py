"""Closed-form reference models, each solved from statistics without another share of the retained samples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from streamcl.audit.data import AuditData, Examples, ModelStatistics
from streamcl.errors import ForgettingError
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.solving import linear_scores
from streamcl.heads.statistics import Statistics
from streamcl.learners.adapted_branch import adapted_share


@dataclass(frozen=True, slots=True, eq=False)
class LinearModel:
    """A model with scores h W + b, minus infinity where not alive: W [D, C], b [C], alive bool [C]."""

    W: Tensor
    b: Tensor
    alive: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return scores, float64 [N, C], of features [N, D]."""
        return linear_scores(features, self.W, self.b, self.alive)

    def without(self, column: int | None) -> LinearModel:
        """Return the same model with the logit of one class masked."""
        if column is None:
            return self
        alive = self.alive.clone()
        alive[column] = False
        return replace(self, alive=alive)


class ModelFactory(Protocol):
    """Solves models from statistics, and computes statistics of examples whose features are mapped."""

    def measure(self, examples: Examples) -> ModelStatistics:
        """Return the statistics of these examples."""

    def solve(self, statistics: ModelStatistics) -> LinearModel:
        """Return the model of these statistics.

        Raises:
            ForgettingError: they cannot be solved.
        """

    def learn_then_unlearn(
        self, statistics: ModelStatistics, examples: Examples
    ) -> tuple[LinearModel, LinearModel]:
        """Return the model after learning the examples, and the model after erasing them again."""


class RidgeFactory:
    """Solves ridge models as `RidgeHead` does, from float64 statistics of features that are mapped.

    Args:
        width: number of features D.
        columns: number of classes C.
        trace_ridge, variance_ridge, gcv_margin: the head's.
    """

    def __init__(
        self,
        width: int,
        columns: int,
        *,
        trace_ridge: float,
        variance_ridge: float | None = None,
        gcv_margin: float | None = None,
    ) -> None:
        self.width, self.columns = width, columns
        self._trace_ridge, self._variance_ridge, self._gcv_margin = trace_ridge, variance_ridge, gcv_margin

    def head(self) -> RidgeHead:
        """Return an empty head with all columns."""
        head = RidgeHead(
            self.width,
            trace_ridge=self._trace_ridge,
            variance_ridge=self._variance_ridge,
            gcv_margin=self._gcv_margin,
        )
        head.grow(self.columns)
        return head

    def measure(self, examples: Examples) -> Statistics:
        """Return the statistics of these examples."""
        return self.head().statistics_of(examples.features, examples.labels)

    def solve(self, statistics: ModelStatistics) -> LinearModel:
        """Return the model of these statistics.

        Raises:
            ForgettingError: they cannot be solved.
        """
        assert isinstance(statistics, Statistics)
        head = self.head()
        head.merge(statistics)
        try:
            W, b = head.exact_weights()
        except RuntimeError as error:
            raise ForgettingError(
                "the audited statistics cannot be solved: more was subtracted from them than was in them"
            ) from error
        return LinearModel(W, b, statistics.counts > 0)

    def learn_then_unlearn(
        self, statistics: ModelStatistics, examples: Examples
    ) -> tuple[LinearModel, LinearModel]:
        """Learn and erase by the head's own methods; what the head refuses to erase stays, and shows."""
        assert isinstance(statistics, Statistics)
        head = self.head()
        head.merge(statistics)
        head.update(examples.features, examples.labels)
        learned = _model_of(head)
        with contextlib.suppress(ForgettingError):
            head.downdate(examples.features, examples.labels)
        return learned, _model_of(head)


class BlendedFactory:
    """Solves a frozen and an adapted head, each on its own columns of the features, blended class by class.

    Args:
        factories: of the frozen and of the adapted head.
        stale: int64 [C], samples of each class that the adapted head learned while its features still moved;
            the larger their part, the smaller its weight (see `streamcl.learners.adapted_branch`).
    """

    def __init__(self, factories: tuple[RidgeFactory, RidgeFactory], stale: Tensor) -> None:
        self._factories, self._stale = factories, stale

    def measure(self, examples: Examples) -> ModelStatistics:
        """Return the statistics for each head."""
        pairs = zip(self._factories, self._per_head(examples), strict=True)
        return tuple(factory.measure(part) for factory, part in pairs)

    def solve(self, statistics: ModelStatistics) -> LinearModel:
        """Return one model of both heads."""
        assert isinstance(statistics, tuple)
        models = [factory.solve(each) for factory, each in zip(self._factories, statistics, strict=True)]
        return self._blended(models, statistics[1])

    def learn_then_unlearn(
        self, statistics: ModelStatistics, examples: Examples
    ) -> tuple[LinearModel, LinearModel]:
        """Learn and erase the examples in both heads."""
        assert isinstance(statistics, tuple)
        parts = zip(self._factories, statistics, self._per_head(examples), strict=True)
        learned, erased = zip(
            *(factory.learn_then_unlearn(each, part) for factory, each, part in parts), strict=True
        )
        known = add_statistics(statistics, self.measure(examples))
        assert isinstance(known, tuple)
        return self._blended(learned, known[1]), self._blended(erased, statistics[1])

    def _blended(self, models: Sequence[LinearModel], adapted: Statistics) -> LinearModel:
        """frozen + share * (adapted - frozen), which is one model on all columns."""
        frozen, moved = models
        share = torch.where(moved.alive, adapted_share(self._stale, adapted.counts), 0.0)
        W = torch.cat([(1 - share) * frozen.W, share * moved.W])
        return LinearModel(W, (1 - share) * frozen.b + share * moved.b, frozen.alive)

    def _per_head(self, examples: Examples) -> Iterator[Examples]:
        start = 0
        for factory in self._factories:
            yield Examples(examples.features[:, start : start + factory.width], examples.labels)
            start += factory.width


def model_factory(
    data: AuditData,
    widths: Sequence[int],
    *,
    trace_ridge: float,
    variance_ridge: float | None = None,
    gcv_margin: float | None = None,
) -> ModelFactory:
    """Return the factory of one head, or of a frozen and an adapted one where there are two widths.

    Args:
        data: of the audit.
        widths: features of each head, side by side in the data; empty for one head.
        trace_ridge, variance_ridge: of every head.
        gcv_margin: of the first head.
    """
    factories = [
        RidgeFactory(
            width,
            data.columns,
            trace_ridge=trace_ridge,
            variance_ridge=variance_ridge,
            gcv_margin=None if number else gcv_margin,
        )
        for number, width in enumerate(widths or (data.width,))
    ]
    if len(factories) == 1:
        return factories[0]
    frozen, adapted = factories
    none = torch.zeros(data.columns, dtype=torch.int64)
    return BlendedFactory((frozen, adapted), data.base[1].counts if isinstance(data.base, tuple) else none)


def add_statistics(one: ModelStatistics, other: ModelStatistics, sign: int = 1) -> ModelStatistics:
    """Return one + sign * other as a copy."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return tuple(a + b if sign > 0 else a - b for a, b in zip(one, other, strict=True))
    assert isinstance(one, Statistics)
    assert isinstance(other, Statistics)
    return one + other if sign > 0 else one - other


def draw_left_out(count: int, samples: int, share: float, rng: np.random.Generator) -> Tensor:
    """Return bool [count, samples], True for another random `share` of the samples in each row."""
    size = max(1, round(share * samples))
    rows = np.zeros((count, samples), dtype=bool)
    for row in rows:
        row[rng.choice(samples, size, replace=False)] = True
    return torch.from_numpy(rows)


def statistics_without(
    factory: ModelFactory, known: ModelStatistics, retain: Examples, left_out: Tensor
) -> Iterator[ModelStatistics]:
    """Yield the statistics without the retained examples of each row of left_out, bool [M, N]."""
    for row in left_out:
        yield add_statistics(known, factory.measure(retain.at(row)), -1)


def relative_error(one: ModelStatistics, other: ModelStatistics) -> float:
    """Return the largest difference between two models' statistics, relative to the second's."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return max(relative_error(a, b) for a, b in zip(one, other, strict=True))
    assert isinstance(one, Statistics)
    assert isinstance(other, Statistics)
    return other.relative_error(one)


def _model_of(head: RidgeHead) -> LinearModel:
    return LinearModel(*head.exact_weights(), torch.tensor(head.counts) > 0)
