"""The closed-form head: ridge regression on fixed features from additive statistics; forgets exactly.

RanPAC (arXiv 2307.02251) without its first phase, ACIL (arXiv 2205.14922); forgetting by subtraction as in
ACU (arXiv 2505.12239).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl.errors import ForgettingError
from streamcl.heads.gram import Gram
from streamcl.protocols import State

_PARTS = (
    "_Q",
    "_counts",
    "_solved",
    "_W",
    "_b",
    "_due",
    "_fresh",
    "_smallest",
)  # beside the Gram; replaced, not written to
_RESIDUE = 1e-8  # what may remain, relative to what was there, where exact arithmetic leaves nothing


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a ridge head knows of samples: gram [D, D], Q = sum of h^T y, float64 [D, C], counts [C]."""

    gram: Gram
    Q: Tensor
    counts: Tensor

    @property
    def total(self) -> int:
        """How many samples these are."""
        return int(self.counts.sum())


BALANCE = 0.5
"""Power of its rarity by which the column of a class is raised: 0 lets frequent classes lead, 1 none."""


class RidgeHead:
    """Scores [N, C] = features W + b with W = (G + lambda I)^-1 Q over everything learned and not forgotten.

    width: d of the features. projection: D of seeded random ReLU features phi = ReLU(f P), P ~ N(0, 1), or
    None for phi = f. relative_lambda: lambda as a share of the mean eigenvalue of what is inverted, so it
    depends on nothing but the data that remains. G and Q are centred by the mean feature and the class
    frequencies when they are solved (an intercept that costs no statistic of its own: the sum of all
    features is the row sum of Q).

    shrinkage: replaces lambda I by a ridge for each feature, its variance times so many samples, which makes
    the solution blind to the features' scales, and strong while samples are few (None: lambda I).

    The weights in use belong to a solve, which `update` falls due when samples since the last one exceed
    `refresh` of all (0 solves at every update), or when a class has twice the samples; erasing always does.
    Which solve that is never depends on when scores were asked for.
    """

    def __init__(
        self,
        width: int,
        *,
        projection: int | None = None,
        seed: int = 0,
        relative_lambda: float = 1e-2,
        shrinkage: float | None = None,
        refresh: float = 0.05,
        device: torch.device | str = "cpu",
    ) -> None:
        if relative_lambda <= 0:
            raise ValueError(f"relative_lambda is {relative_lambda}, expected a positive number")
        if shrinkage is not None and shrinkage <= 0:
            raise ValueError(f"shrinkage is {shrinkage}, expected a positive number of samples")
        self.width = width
        self._relative_lambda = relative_lambda
        self._shrinkage = shrinkage
        self._fresh: tuple[Tensor, Tensor] | None = None  # of all that is known; only spares a second solve
        self._smallest: float | None = None  # the same of the smallest eigenvalue, known after an erasure
        self._refresh = refresh
        self._P = None if projection is None else _projection(width, projection, seed).to(device)
        D = projection or width
        self._gram = Gram(D, device)
        self._Q = torch.zeros(D, 0, dtype=torch.float64, device=device)
        self._counts = torch.zeros(0, dtype=torch.int64, device=device)
        self._W = self._Q.clone()
        self._b = self._Q[0].clone()
        self._solved = self._counts.clone()  # the counts at the solve in use
        self._due = False

    @property
    def classes(self) -> int:
        """How many columns there are, those without samples included."""
        return self._Q.shape[1]

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples learned and not forgotten, per class column."""
        return tuple(self._counts.tolist())

    @property
    def summed(self) -> int:
        """D: how many columns the rows have that are summed."""
        return self._gram.width

    @property
    def statistics(self) -> Statistics:
        """The head's own sums. Not to be written to."""
        return Statistics(self._gram, self._Q, self._counts)

    def grow(self, classes: int) -> None:
        """Have at least `classes` columns; old ones keep their values, one without samples scores -inf."""
        more = classes - self.classes
        if more <= 0:
            return
        self._Q, self._counts, self._solved, self._W, self._b = (
            _widened(values, more) for values in (self._Q, self._counts, self._solved, self._W, self._b)
        )

    def features(self, features: Tensor) -> Tensor:
        """phi, float64 [N, D], of features [N, d]."""
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ValueError(f"features have shape {tuple(features.shape)}, expected [N, {self.width}]")
        features = features.detach().to(self._Q.device)
        if self._P is None:
            return features.double()
        missing = -len(features) % 8  # a product of one row rounds differently, so rows never come alone
        rows = F.pad(features.float(), (0, 0, 0, missing))
        return (rows @ self._P).relu().double()[: len(features)]

    def measure(self, features: Tensor, targets: Tensor) -> Statistics:
        """The statistics of these samples alone, to be kept per subject or class, merged or removed later."""
        h, targets = self._checked(features, targets)
        gram = Gram(self._gram.width, h.device)
        gram.add(h)
        return Statistics(gram, _sums(h, targets, self.classes), targets.bincount(minlength=self.classes))

    def gathered(self, parts: Iterable[tuple[Any, Mapping[int, tuple[int, Any]]]]) -> Statistics:
        """Statistics from parts: rows [r, D] to sum the outer products of; by column a count and a Q [D]."""
        gram = Gram(self._gram.width, self._Q.device)
        Q, counts = torch.zeros_like(self._Q), torch.zeros_like(self._counts)
        for rows, sums in parts:
            gram.add(torch.as_tensor(rows, device=Q.device))
            for column, (count, total) in sums.items():
                Q[:, column] += torch.as_tensor(total, device=Q.device)
                counts[column] += count
        return Statistics(gram, Q, counts)

    def update(self, features: Tensor, targets: Tensor) -> None:
        """Learn samples: features [N, d], targets int64 [N], columns that exist.

        Raises ValueError, and changes nothing, for other shapes, other columns and values not finite; nor has
        anything changed where memory runs out.
        """
        h, targets = self._checked(features, targets)
        Q = self._Q + _sums(h, targets, self.classes)
        counts = self._counts + targets.bincount(minlength=self.classes)
        due = self._falls_due(counts)
        self._gram.add(h)
        self._take_over(Q, counts, due=due)

    def kept(self) -> Callable[[], None]:
        """What takes back one `grow` and one `update` that come next, bit for bit. Nothing is copied."""
        gram = self._gram.kept()
        before = {name: getattr(self, name) for name in _PARTS}

        def undo() -> None:
            gram()
            for name, value in before.items():
                setattr(self, name, value)

        return undo

    def merge(self, other: Statistics) -> None:
        """Learn what other statistics of the same features hold; column i there is column i here."""
        other = self._aligned(other)
        Q, counts = self._Q + other.Q, self._counts + other.counts
        due = self._falls_due(counts)
        self._gram.add_sum(other.gram)
        self._take_over(Q, counts, due=due)

    def downdate(self, features: Tensor, targets: Tensor) -> None:
        """Forget samples that were learned: exact, up to rounding in float64.

        Raises ForgettingError, and changes nothing, where these samples cannot all be among those learned: a
        count or an eigenvalue would turn negative, or features remain of a class with no samples left. A
        second deletion of a sample whose direction many others share cannot be seen from sums: keep ids.
        """
        h, targets = self._checked(features, targets)
        gram = self._gram.copy()
        gram.add(h, sign=-1.0)
        counts = self._counts - targets.bincount(minlength=self.classes)
        self._replace(Statistics(gram, self._Q - _sums(h, targets, self.classes), counts))

    def remove(self, other: Statistics) -> None:
        """Forget by statistics that were kept (see `measure`); raises like `downdate`."""
        other = self._aligned(other)
        gram = self._gram.copy()
        gram.add_sum(other.gram, sign=-1.0)
        self._replace(Statistics(gram, self._Q - other.Q, self._counts - other.counts))

    def drop_class(self, column: int) -> None:
        """Remove the column of a class whose samples are all forgotten; later columns move up by one.

        Afterwards the head is one that has never seen the class. Raises ForgettingError while it has samples.
        """
        if not 0 <= column < self.classes:
            raise ForgettingError(f"there is no class column {column}, only {self.classes}")
        if left := int(self._counts[column]):
            raise ForgettingError(
                f"class column {column} still has {left} samples in the statistics",
                hint="forget its samples first: their share of G is not in the column",
            )
        keep = [i for i in range(self.classes) if i != column]
        self._Q, self._counts, self._solved = self._Q[:, keep], self._counts[keep], self._solved[keep]
        self._W, self._b = self._W[:, keep], self._b[keep]

    def scores(self, features: Tensor) -> Tensor:
        """Scores, float64 [N, C], of features [N, d]; -inf for a class without samples. Changes no state."""
        h = self.features(features)
        self._solve_if_due()
        return (h @ self._W + self._b).masked_fill(self._counts == 0, -math.inf)

    def exact_scores(self, features: Tensor) -> Tensor:
        """`scores` by weights of all that is known now, whichever solve is in use; changes no state."""
        h = self.features(features)
        self._solve_if_due()
        if torch.equal(self._solved, self._counts):
            weights = self._W, self._b
        else:
            weights = self._fresh = self._fresh or self._laid_out()
        return (h @ weights[0] + weights[1]).masked_fill(self._counts == 0, -math.inf)

    def exact_weights(self) -> tuple[Tensor, Tensor]:
        """Solve for all that is known now, use it from here on, and return W, float64 [D, C], and b [C]."""
        self._due = True
        self._solve_if_due()
        return self._W, self._b

    def smallest_eigenvalue(self) -> float:
        """The smallest eigenvalue of G + lambda I as a share of lambda: 1 or a little more.

        Under 1/2 something was subtracted that had not been added. 0: nothing known. After an erasure it is
        known from the check that the erasure passed.
        """
        return self._smallest_of(self.statistics) if self._smallest is None else self._smallest

    def state_dict(self) -> State:
        """The statistics and the weights in use with the solve that they belong to."""
        self._solve_if_due()
        arrays = {
            "Q": self._Q,
            "counts": self._counts,
            "W": self._W,
            "b": self._b,
            "solved": self._solved,
        }
        return {
            "gram": self._gram.state_dict(),
            **{name: array.cpu().numpy().copy() for name, array in arrays.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the head that returned `state`, made with the same arguments."""
        self._gram.load_state_dict(state["gram"])
        device = self._Q.device
        self._Q, self._counts, self._W, self._b, self._solved = (
            torch.tensor(np.asarray(state[name]), device=device)
            for name in ("Q", "counts", "W", "b", "solved")
        )
        self._due = False
        self._fresh = self._smallest = None

    def _checked(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        h = self.features(features)
        targets = targets.to(h.device)
        if targets.shape != h.shape[:1]:
            raise ValueError(f"targets have shape {tuple(targets.shape)}, expected [{len(h)}]")
        if len(h) and not 0 <= int(targets.min()) <= int(targets.max()) < self.classes:
            raise ValueError(f"targets must be class columns below {self.classes}; call grow for a new class")
        if not bool(h.isfinite().all()):
            raise ValueError("features are not finite")
        return h, targets

    def _aligned(self, other: Statistics) -> Statistics:
        more = self.classes - other.Q.shape[1]
        if other.gram.width != self._gram.width or more < 0:
            raise ValueError(
                f"statistics of width {other.gram.width} with {other.Q.shape[1]} classes do not fit "
                f"a head of width {self._gram.width} with {self.classes}"
            )
        return Statistics(other.gram, _widened(other.Q, more), _widened(other.counts, more))

    def _falls_due(self, counts: Tensor) -> bool:
        """Whether these new counts make a solve due; an owed one is made first unless they do."""
        total = int(counts.sum())
        doubled = bool((counts >= 2 * self._solved)[counts > self._counts].any())  # a first doubles none
        if doubled or total - int(self._solved.sum()) > self._refresh * total:
            return True
        self._solve_if_due()
        return False

    def _take_over(self, Q: Tensor, counts: Tensor, *, due: bool) -> None:
        """Have these sums from here on. Fails in no place, so that all of it happens."""
        self._fresh = self._smallest = None
        self._Q, self._counts = Q, counts
        if due:
            self._due, self._solved = True, counts

    def _replace(self, left: Statistics) -> None:
        """Take over the statistics that erasing leaves, once they have been shown to be possible."""
        if bool((left.counts < 0).any()):
            raise ForgettingError("more samples of a class are to be forgotten than were learned")
        gone = left.counts == 0
        residue = float(left.Q[:, gone].abs().max()) if bool(gone.any()) else 0.0
        if residue > _RESIDUE * max(float(self._Q.abs().max()), 1e-300):
            raise ForgettingError(
                "features would be left of a class without samples: these are not its samples"
            )
        left.Q[:, gone] = 0.0
        if left.total == 0:
            if left.gram.largest > _RESIDUE * self._gram.largest:
                raise ForgettingError(
                    "features would be left without samples: these are not the samples learned"
                )
            left = Statistics(Gram(left.gram.width, left.Q.device), left.Q, left.counts)
        elif (smallest := self._smallest_of(left)) < 0.5:
            raise ForgettingError(
                "an eigenvalue of what remains would be negative: these samples are not all in it",
                hint="they were forgotten before, never learned, or their features were derived differently",
            )
        self._gram, self._Q, self._counts = left.gram, left.Q, left.counts
        self._fresh, self._smallest = None, smallest if left.total else 0.0
        self._solved = left.counts
        self._due = True

    def _solve_if_due(self) -> None:
        if not self._due:
            return
        self._W, self._b = self._laid_out()
        self._solved, self._due = self._counts, False

    def _laid_out(self) -> tuple[Tensor, Tensor]:
        """`_weights` in the order of memory that a state restores: a product's last bits depend on it."""
        W, b = self._weights()
        return W.contiguous(), b.contiguous()

    def _weights(self) -> tuple[Tensor, Tensor]:
        """W [D, C] and b [C] of all that is known now; what another closed form on these sums replaces."""
        return _solve(self.statistics, self._relative_lambda, self._shrinkage)

    def _ridge(self, statistics: Statistics) -> Tensor:
        """[D]: the ridge beside the uncentred G, which tells possible sums from impossible ones."""
        if self._shrinkage is None:
            mean_eigenvalue = statistics.gram.trace / self._gram.width
            return torch.full_like(self._gram.diagonal(), self._relative_lambda * mean_eigenvalue)
        return self._shrinkage * _variance(statistics)

    def _smallest_of(self, left: Statistics) -> float:
        """The smallest eigenvalue of P^-1/2 (G + P) P^-1/2 by four steps of inverse iteration.

        A little above it where others lie close; 0 where it is not above 1/2. One decomposition, of G + P/2,
        both shows that it is above and serves the iteration.
        """
        ridge = self._ridge(left)
        if not bool((ridge > 0).all()):
            return 0.0
        lower = left.gram.lower()
        lower.diagonal().add_(ridge / 2)
        factor, failed = torch.linalg.cholesky_ex(lower)
        if int(failed):
            return 0.0
        scale = ridge.sqrt()[:, None]
        x = torch.ones_like(scale)
        for _ in range(4):
            x = scale * torch.cholesky_solve(scale * (x / x.norm()), factor)
        return 0.5 + float(1 / x.norm())


def _variance(statistics: Statistics) -> Tensor:
    """[D]: the features' variances, none below a millionth of their mean."""
    total = max(statistics.total, 1)
    mean = statistics.Q.sum(dim=1) / total
    variance = (statistics.gram.diagonal() / total - mean.square()).clamp(min=0.0)
    return variance.clamp(min=float(1e-6 * variance.mean()))


def _solve(
    statistics: Statistics, relative_lambda: float, shrinkage: float | None = None
) -> tuple[Tensor, Tensor]:
    """Centred ridge regression; float64 throughout.

    At D = 3840, C = 100 on one thread it takes 0.58 s; the parts of a float32 Cholesky with one or two steps
    of refinement add up to 0.47 or 0.59 s, which buys too little.
    """
    gram, Q, counts = statistics.gram, statistics.Q, statistics.counts
    total = statistics.total
    if total == 0:
        return torch.zeros_like(Q), torch.zeros_like(Q[0])
    mean = Q.sum(dim=1) / total  # [D], as every sample has one class
    frequency = counts.double() / total  # [C]
    A = gram.lower()
    A.addr_(mean, mean, alpha=-total)
    if shrinkage is None:
        trace = float(A.trace())
        ridge = A.new_full((gram.width,), relative_lambda * max(trace, 1e-9 * gram.trace) / gram.width)
    else:
        ridge = shrinkage * _variance(statistics)
    A.diagonal().add_(torch.where(ridge > 0, ridge, 1.0))  # no variance at all: any ridge gives W = 0
    factor = torch.linalg.cholesky(A)  # reads the lower triangle only
    W = torch.cholesky_solve(Q - torch.outer(mean, counts.double()), factor)
    if shrinkage is not None:  # else few samples are outvoted: a target of 1 is as rare as its class
        present = counts > 0
        share = 1.0 / int(present.sum())
        W = W * torch.where(present, share * total / counts.clamp(min=1), 1.0) ** BALANCE
        frequency = torch.where(present, share, 0.0).double()
    return W, frequency - mean @ W


def _sums(h: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Q of these samples, [D, C]."""
    return h.new_zeros(classes, h.shape[1]).index_add_(0, targets, h).T


def _widened(values: Tensor, more: int) -> Tensor:
    return torch.cat([values, values.new_zeros(*values.shape[:-1], more)], dim=-1)


def _projection(width: int, wide: int, seed: int) -> Tensor:
    """P [d, D], standard normal."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((width, wide), dtype=np.float32))
