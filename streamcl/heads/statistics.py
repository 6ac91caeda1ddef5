"""The statistics of a closed form, sums over samples: values that add up, and are checked when subtracted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from streamcl.errors import ForgettingError
from streamcl.heads.gram import Gram
from streamcl.protocols import State

RESIDUE = 1e-8
"""Share of the largest entry that may remain where exact arithmetic leaves nothing."""

PartsOfHead: TypeAlias = Iterable[tuple[Any, Mapping[int, tuple[int, Any]]]]
"""Rows [r, D] of which the outer products are summed, and by class column a count and a sum of rows [D]."""


class HeadStatistics(Protocol):
    """The statistics of some samples in one head, as an immutable value."""

    @property
    def counts(self) -> Tensor:
        """Samples of each class, int64 [C]."""

    def __add__(self, other: Self) -> Self: ...

    def __sub__(self, other: Self) -> Self: ...

    def relative_error(self, other: Self) -> float:
        """Return the largest difference of an entry, relative to the largest entry of its tensor here."""


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """The statistics of a ridge regression.

    Attributes:
        gram: G = sum of h^T h, float64 [D, D].
        Q: sum of h^T y over one-hot y, float64 [D, C].
        counts: samples of each class, int64 [C].
    """

    gram: Gram
    Q: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu", classes: int = 0) -> Statistics:
        """Return the statistics of no samples."""
        Q = torch.zeros(width, classes, dtype=torch.float64, device=device)
        return cls(Gram(width, device), Q, torch.zeros(classes, dtype=torch.int64, device=device))

    @classmethod
    def of(cls, h: Tensor, targets: Tensor, classes: int, outer: Tensor | None = None) -> Statistics:
        """Return the statistics of samples.

        Args:
            h: [N, D].
            targets: int64 [N], columns below `classes`.
            classes: C.
            outer: rows [M, D] whose outer products G sums; None: h.
        """
        rows = h.detach().double()
        gram = Gram(rows.shape[1], rows.device)
        gram.add(rows if outer is None else outer.detach().double())
        Q, counts = sums_by_class(rows, targets, classes)
        return cls(gram, Q.contiguous(), counts)

    @property
    def total(self) -> int:
        """The number of samples."""
        return int(self.counts.sum())

    @property
    def classes(self) -> int:
        """The number of class columns, those without samples included."""
        return len(self.counts)

    def __add__(self, other: Statistics) -> Statistics:
        """Return the statistics of both; the narrower one lacks the last classes."""
        return self._plus(other, 1)

    def __sub__(self, other: Statistics) -> Statistics:
        """Return the statistics without those of `other`; whether they were part of them is not checked."""
        return self._plus(other, -1)

    def relative_error(self, other: Statistics) -> float:
        """Return the largest difference of an entry, relative to the largest entry of its tensor here."""
        difference = self - other
        return max(
            ratio(difference.gram.largest, self.gram.largest),
            ratio(largest(difference.Q), largest(self.Q)),
            ratio(largest(difference.counts), largest(self.counts)),
        )

    def widened(self, classes: int) -> Statistics:
        """Return the statistics with so many class columns; new ones are zero."""
        more = classes - self.classes
        return (
            Statistics(self.gram, zero_padded(self.Q, more), zero_padded(self.counts, more)) if more else self
        )

    def select(self, columns: Sequence[int]) -> Statistics:
        """Return the statistics with these class columns, in this order; -1 is a column of zeros."""
        return Statistics(self.gram, select_columns(self.Q, columns), select_columns(self.counts, columns))

    def class_sums_with(self, rows: Tensor, targets: Tensor, weight: int = 1) -> tuple[Tensor, Tensor]:
        """Return Q [D, C] and counts int64 [C] with further samples, to the bit as if their own were added.

        Only columns of their classes are computed: the sums of a batch are a small part of 10,000 columns.

        Args:
            rows: float64 [N, D].
            targets: int64 [N].
            weight: how many samples each of them stands for.
        """
        present, places = targets.unique(return_inverse=True)  # [P], [N]
        added, counts = sums_by_class(rows, places, len(present))  # [D, P], [P]
        Q, total = self.Q.clone(), self.counts.clone()
        Q[:, present] += added if weight == 1 else weight * added
        total[present] += weight * counts
        return Q, total

    def state_dict(self) -> State:
        """Return the statistics as arrays."""
        arrays = {"Q": self.Q, "counts": self.counts}
        plain = {name: array.cpu().numpy().copy() for name, array in arrays.items()}
        return {"gram": self.gram.state_dict(), **plain}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], width: int, device: torch.device | str) -> Statistics:
        """Return the statistics that gave `state`, of rows of `width` columns."""
        gram = Gram(width, device)
        gram.load_state_dict(state["gram"])
        Q, counts = (torch.tensor(np.asarray(state[name])).to(device) for name in ("Q", "counts"))
        return cls(gram, Q, counts)

    def _plus(self, other: Statistics, sign: int) -> Statistics:
        gram = self.gram.copy()
        gram.add_sum(other.gram, sign=sign)
        classes = max(self.classes, other.classes)
        one, two = self.widened(classes), other.widened(classes)
        return Statistics(gram, one.Q + sign * two.Q, one.counts + sign * two.counts)


def sums_by_class(rows: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return Q [D, C] and counts int64 [C] of samples.

    Args:
        rows: float64 [N, D].
        targets: int64 [N].
        classes: C.
    """
    Q = rows.new_zeros(classes, rows.shape[1]).index_add_(0, targets, rows).T
    return Q, targets.bincount(minlength=classes)


def check_fit(rows: Tensor, targets: Tensor, classes: int) -> None:
    """Check samples before a head sums them.

    Args:
        rows: [N, D].
        targets: int64 [N].
        classes: the number of class columns.

    Raises:
        ValueError: targets of another shape or not columns below `classes`, or a row that is not finite.
    """
    if targets.shape != rows.shape[:1]:
        raise ValueError(f"targets have shape {tuple(targets.shape)}, expected [{len(rows)}]")
    if len(rows) and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise ValueError(f"targets must be class columns below {classes}; call grow for a new class")
    if not bool(rows.isfinite().all()):
        raise ValueError("features are not finite")


def zero_padded(values: Tensor, more: int) -> Tensor:
    """Return [..., C + more]: the values with zeros behind each row.

    Args:
        values: [..., C].
        more: the number of zeros.
    """
    return torch.cat([values, values.new_zeros(*values.shape[:-1], more)], dim=-1)


def select_columns(values: Tensor, columns: Sequence[int]) -> Tensor:
    """Return [..., len(columns)]: these entries of the last axis, in this order.

    Args:
        values: [..., C].
        columns: from 0 to C - 1, or -1 for zeros.
    """
    index = torch.tensor(list(columns), dtype=torch.int64, device=values.device)
    return zero_padded(values, 1)[..., index]


def largest(values: Tensor) -> float:
    """Return the largest absolute entry of a tensor of any shape; 0 of an empty one."""
    return float(values.abs().max()) if values.numel() else 0.0


def ratio(difference: float, size: float) -> float:
    """Return difference / size; the difference itself where the size is zero."""
    return difference / size if size else difference


def check_counts(left: Tensor) -> None:
    """Raise ForgettingError where a count of samples left, int64 [C], is negative."""
    if bool((left < 0).any()):
        raise ForgettingError("more samples of a class are to be forgotten than were learned")


def without_residue(left: Statistics, before: Statistics) -> Statistics:
    """Return `left` with exact zeros where no samples are left; its Q is written to.

    Raises:
        ForgettingError: features of `before` would be left where no samples are.
    """
    check_counts(left.counts)
    gone = left.counts == 0
    residue = float(left.Q[:, gone].abs().max()) if bool(gone.any()) else 0.0
    if residue > RESIDUE * max(float(before.Q.abs().max()), 1e-300):
        raise ForgettingError("features of a class without samples would remain: these are not its samples")
    left.Q[:, gone] = 0.0
    if left.total:
        return left
    if left.gram.largest > RESIDUE * before.gram.largest:
        raise ForgettingError("features would remain without samples: these are not the samples learned")
    return Statistics(Gram(left.gram.width, left.Q.device), left.Q, left.counts)


def smallest_eigenvalue(gram: Gram, ridge: Tensor) -> float:
    """Return the smallest eigenvalue of P^-1/2 (G + P) P^-1/2, P = diag(ridge), after four iterations.

    A little above it where others lie close; 0 where it is not above 1/2. One decomposition, of G + P/2,
    both shows that it is above and serves the inverse iteration.

    Args:
        gram: G.
        ridge: float64 [D].
    """
    if not bool((ridge > 0).all()):
        return 0.0
    try:
        factor = gram.regularised(ridge / 2)
    except ArithmeticError:
        return 0.0
    scale = ridge.sqrt()[:, None]
    x = torch.ones_like(scale)
    for _ in range(4):
        x = scale * factor.solve(scale * (x / x.norm()))
    return 0.5 + float(1 / x.norm())


def eigenvalue_rounding(statistics: Statistics, ridge: Tensor) -> float:
    """Return by how much rounding may have moved the eigenvalues that `smallest_eigenvalue` looks at.

    An entry of G that N samples were added to is off by about eps sqrt(N) of its size. Beside a ridge that
    does not grow with N, and where features depend on one another, that passes 1e-9 with a million samples.

    Args:
        statistics: of which G and N are used.
        ridge: float64 [D].
    """
    if not bool((ridge > 0).all()):
        return 0.0
    shares = statistics.gram.diagonal() / ridge
    return torch.finfo(torch.float64).eps * float(shares.max()) * math.sqrt(statistics.total)


def subtracted(sums: Statistics, part: Statistics) -> Statistics:
    """Return sums - part, with no eigenvalue far below zero.

    Raises:
        ForgettingError: a count or an eigenvalue would be negative, so `part` is not in the sums.
    """
    left = sums - part
    check_counts(left.counts)
    if not left.total:
        return Statistics.empty(sums.gram.width, sums.Q.device, left.classes)
    left.Q[:, left.counts == 0] = 0.0
    ridge = 0.5e-6 * sums.gram.trace / sums.gram.width
    try:
        left.gram.regularised(left.Q.new_full((left.gram.width,), ridge))
    except ArithmeticError as error:
        raise ForgettingError(
            "an eigenvalue of what remains would be negative: these are not in the sums"
        ) from error
    return left
