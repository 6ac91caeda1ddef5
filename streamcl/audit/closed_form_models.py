"""Closed-form models, solved from the statistics of one ridge head or of two whose scores are blended."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from streamcl.audit.data import Examples, ModelStatistics
from streamcl.errors import ForgettingError
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.solving import linear_scores
from streamcl.learners.adapted_branch import adapted_share
from streamcl.learners.statistics import PerHead


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


class ClosedFormModels:
    """Solves models as the heads of a learner do, on mapped features that stand side by side.

    Args:
        heads: of the learner, one, or a frozen and an adapted one that are blended class by class; their
            options alone are used.
        columns: number of classes C.
        stale: int64 [C], samples of each class that the adapted head learned while its features still moved;
            the larger their part, the smaller its weight (see `streamcl.learners.adapted_branch`).
    """

    def __init__(self, heads: Sequence[RidgeHead], columns: int, stale: Tensor | None = None) -> None:
        self._heads, self._columns = heads, columns
        self._stale = torch.zeros(columns, dtype=torch.int64) if stale is None else stale

    def measure(self, examples: Examples) -> ModelStatistics:
        """Return the statistics of these examples."""
        pairs = zip(self._empty(), self._per_head(examples), strict=True)
        return PerHead(tuple(head.statistics_of(each, examples.labels) for head, each in pairs))

    def solve(self, statistics: ModelStatistics) -> LinearModel:
        """Return the model of these statistics.

        Raises:
            ForgettingError: they cannot be solved.
        """
        return self._model(self._merged(statistics), statistics.heads[-1].counts)

    def learn_then_unlearn(
        self, statistics: ModelStatistics, examples: Examples
    ) -> tuple[LinearModel, LinearModel]:
        """Return the model after learning the examples, and the model after erasing them again.

        By the heads' own methods: the influence of examples that a head refuses to erase stays visible.
        """
        heads = self._merged(statistics)
        for head, features in zip(heads, self._per_head(examples), strict=True):
            head.update(features, examples.labels)
        learned = self._model(heads, torch.tensor(heads[-1].counts))
        for head, features in zip(heads, self._per_head(examples), strict=True):
            with contextlib.suppress(ForgettingError):
                head.downdate(features, examples.labels)
        return learned, self._model(heads, statistics.heads[-1].counts)

    def _empty(self) -> list[RidgeHead]:
        return [head.empty_on_rows(self._columns) for head in self._heads]

    def _merged(self, statistics: ModelStatistics) -> list[RidgeHead]:
        heads = self._empty()
        for head, known in zip(heads, statistics.heads, strict=True):
            head.merge(known)
        return heads

    def _model(self, heads: Sequence[RidgeHead], counts: Tensor) -> LinearModel:
        """One model on all columns: frozen + share * (adapted - frozen), or the only head's.

        counts: int64 [C], samples of each class in the last head, by which its share is computed.
        """
        try:
            models = [_linear_model(head) for head in heads]
        except RuntimeError as error:
            raise ForgettingError(
                "the audited statistics cannot be solved: more was subtracted than they contain"
            ) from error
        if len(models) == 1:
            return models[0]
        frozen, adapted = models
        share = torch.where(adapted.alive, adapted_share(self._stale, counts), 0.0)
        W = torch.cat([(1 - share) * frozen.W, share * adapted.W])
        return LinearModel(W, (1 - share) * frozen.b + share * adapted.b, frozen.alive)

    def _per_head(self, examples: Examples) -> Iterator[Tensor]:
        return iter(examples.features.split([head.row_width for head in self._heads], dim=1))


def _linear_model(head: RidgeHead) -> LinearModel:
    """The model of a head on its learned rows, of which the first D columns alone are predicted from."""
    W, b = head.exact_weights()
    W = torch.cat([W, W.new_zeros(head.row_width - len(W), W.shape[1])])
    return LinearModel(W, b, torch.tensor(head.counts) > 0)
