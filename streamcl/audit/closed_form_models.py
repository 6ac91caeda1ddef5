"""Closed-form models by the dozen: each solved from sums without another share of the retained samples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from streamcl.audit.data import Examples, Material, Sums
from streamcl.errors import ForgettingError
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.solving import scored
from streamcl.heads.statistics import Statistics
from streamcl.learners.adapted_branch import adapted_share


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """One model: scores = h W + b, minus infinity where not alive. W [D, C], b [C], alive bool [C]."""

    W: Tensor
    b: Tensor
    alive: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Scores, float64 [N, C], of features [N, D]."""
        return scored(features, self.W, self.b, self.alive)

    def without(self, column: int | None) -> Weights:
        """The same weights, unable to name one class (a logit mask)."""
        if column is None:
            return self
        alive = self.alive.clone()
        alive[column] = False
        return replace(self, alive=alive)


class Form(Protocol):
    """Makes models from sums, and sums from examples whose features are already mapped."""

    def measure(self, examples: Examples) -> Sums:
        """The sums of these examples."""
        ...

    def solve(self, sums: Sums) -> Weights:
        """The model of these sums. Raises ForgettingError where they cannot be solved."""
        ...

    def there_and_back(self, sums: Sums, examples: Examples) -> tuple[Weights, Weights]:
        """The models once the examples were learned on top, and once they were forgotten again."""
        ...


class ClosedForm:
    """Makes ridge models as `RidgeHead` does, from sums over features that are already mapped, float64."""

    def __init__(
        self,
        width: int,
        columns: int,
        *,
        relative_lambda: float,
        shrinkage: float | None = None,
        margin: float | None = None,
    ) -> None:
        self.width, self.columns = width, columns
        self._relative_lambda, self._shrinkage, self._margin = relative_lambda, shrinkage, margin

    def head(self) -> RidgeHead:
        """A head that knows nothing, with all columns."""
        head = RidgeHead(
            self.width,
            relative_lambda=self._relative_lambda,
            shrinkage=self._shrinkage,
            margin=self._margin,
        )
        head.grow(self.columns)
        return head

    def measure(self, examples: Examples) -> Statistics:
        """The sums of these examples."""
        return self.head().measure(examples.features, examples.labels)

    def solve(self, sums: Sums) -> Weights:
        """The model of these sums. Raises ForgettingError where they are sums of no samples."""
        assert isinstance(sums, Statistics)
        head = self.head()
        head.merge(sums)
        try:
            W, b = head.exact_weights()
        except RuntimeError as error:
            raise ForgettingError(
                "the audited statistics cannot be solved: more was taken out of them than was in them"
            ) from error
        return Weights(W, b, sums.counts > 0)

    def there_and_back(self, sums: Sums, examples: Examples) -> tuple[Weights, Weights]:
        """By the head's own way of learning and forgetting; what it refuses to forget stays, and shows."""
        assert isinstance(sums, Statistics)
        head = self.head()
        head.merge(sums)
        head.update(examples.features, examples.labels)
        taught = _weights(head)
        with contextlib.suppress(ForgettingError):
            head.downdate(examples.features, examples.labels)
        return taught, _weights(head)


class TwoHeads:
    """Models of a frozen and an adapted head, each on its own stretch of the features, joined class by class.

    stale: int64 [C], samples of each class that the adapted head learned while its features still moved; it
    has the less say on a class, the larger their part (see streamcl.learners.adapted_branch.join).
    """

    def __init__(self, forms: tuple[ClosedForm, ClosedForm], stale: Tensor) -> None:
        self._forms, self._stale = forms, stale

    def measure(self, examples: Examples) -> Sums:
        """The sums for each head."""
        pairs = zip(self._forms, self._stretches(examples), strict=True)
        return tuple(form.measure(part) for form, part in pairs)

    def solve(self, sums: Sums) -> Weights:
        """One model of both heads."""
        assert isinstance(sums, tuple)
        return self._joined([form.solve(each) for form, each in zip(self._forms, sums, strict=True)], sums[1])

    def there_and_back(self, sums: Sums, examples: Examples) -> tuple[Weights, Weights]:
        """Learned and forgotten again in both heads."""
        assert isinstance(sums, tuple)
        parts = zip(self._forms, sums, self._stretches(examples), strict=True)
        taught, erased = zip(*(form.there_and_back(each, part) for form, each, part in parts), strict=True)
        more = self.measure(examples)
        known = combined(sums, more)
        assert isinstance(known, tuple)
        return self._joined(taught, known[1]), self._joined(erased, sums[1])

    def _joined(self, models: Sequence[Weights], adapted: Statistics) -> Weights:
        """frozen + share * (adapted - frozen), which is one model on both stretches."""
        frozen, moved = models
        share = torch.where(moved.alive, adapted_share(self._stale, adapted.counts), 0.0)
        W = torch.cat([(1 - share) * frozen.W, share * moved.W])
        return Weights(W, (1 - share) * frozen.b + share * moved.b, frozen.alive)

    def _stretches(self, examples: Examples) -> Iterator[Examples]:
        start = 0
        for form in self._forms:
            yield Examples(examples.features[:, start : start + form.width], examples.labels)
            start += form.width


def form_of(
    material: Material,
    widths: Sequence[int],
    *,
    relative_lambda: float,
    shrinkage: float | None = None,
    margin: float | None = None,
) -> Form:
    """One head, or a frozen and an adapted one where there are two widths, which features then add up to."""
    forms = [
        ClosedForm(
            width,
            material.columns,
            relative_lambda=relative_lambda,
            shrinkage=shrinkage,
            margin=None if place else margin,
        )
        for place, width in enumerate(widths or (material.width,))
    ]
    if len(forms) == 1:
        return forms[0]
    frozen, adapted = forms
    stale = torch.zeros(material.columns, dtype=torch.int64)
    return TwoHeads((frozen, adapted), material.base[1].counts if isinstance(material.base, tuple) else stale)


def _weights(head: RidgeHead) -> Weights:
    return Weights(*head.exact_weights(), torch.tensor(head.counts) > 0)


def combined(one: Sums, other: Sums, sign: int = 1) -> Sums:
    """one + sign * other, as fresh sums."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return tuple(a + b if sign > 0 else a - b for a, b in zip(one, other, strict=True))
    assert isinstance(one, Statistics)
    assert isinstance(other, Statistics)
    return one + other if sign > 0 else one - other


def leave_outs(count: int, samples: int, share: float, rng: np.random.Generator) -> Tensor:
    """bool [count, samples]: in each row another random `share` of the samples is True, that is left out."""
    size = max(1, round(share * samples))
    rows = np.zeros((count, samples), dtype=bool)
    for row in rows:
        row[rng.choice(samples, size, replace=False)] = True
    return torch.from_numpy(rows)


def leaving_out(form: Form, sums: Sums, retain: Examples, left_out: Tensor) -> Iterator[Sums]:
    """The sums without the retained examples of each row of left_out, bool [M, N], one after the other."""
    for row in left_out:
        yield combined(sums, form.measure(retain.at(row)), -1)


def disagreement(one: Sums, other: Sums) -> float:
    """The largest difference of two models' sums, relative to the largest sum."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return max(disagreement(a, b) for a, b in zip(one, other, strict=True))
    assert isinstance(one, Statistics)
    assert isinstance(other, Statistics)
    gram = (one - other).gram.largest / max(other.gram.largest, 1e-300)
    Q = float((one.Q - other.Q).abs().max() / other.Q.abs().max().clamp_min(1e-300))
    return max(gram, Q)
