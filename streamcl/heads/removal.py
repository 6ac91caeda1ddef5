"""Sums that erasing leaves, taken for true only once they have been shown to be possible."""

from __future__ import annotations

import torch
from torch import Tensor

from streamcl.errors import ForgettingError
from streamcl.heads.gram import Gram
from streamcl.heads.statistics import Statistics, combined, nothing

_RESIDUE = 1e-8  # what may remain, relative to what was there, where exact arithmetic leaves nothing


def confirm_counts(left: Statistics) -> None:
    """Raises ForgettingError where fewer than no samples of a class would be left."""
    if bool((left.counts < 0).any()):
        raise ForgettingError("more samples of a class are to be forgotten than were learned")


def without_residue(left: Statistics, before: Statistics) -> Statistics:
    """What `left` is of `before`, exactly zero where no samples are left. Raises ForgettingError.

    It is refused where features would be left of no samples; the Q of `left` is written to.
    """
    confirm_counts(left)
    gone = left.counts == 0
    residue = float(left.Q[:, gone].abs().max()) if bool(gone.any()) else 0.0
    if residue > _RESIDUE * max(float(before.Q.abs().max()), 1e-300):
        raise ForgettingError("features would be left of a class without samples: these are not its samples")
    left.Q[:, gone] = 0.0
    if left.total:
        return left
    if left.gram.largest > _RESIDUE * before.gram.largest:
        raise ForgettingError("features would be left without samples: these are not the samples learned")
    return Statistics(Gram(left.gram.width, left.Q.device), left.Q, left.counts)


def smallest_eigenvalue(statistics: Statistics, ridge: Tensor) -> float:
    """The smallest eigenvalue of P^-1/2 (G + P) P^-1/2, P = diag(ridge [D]), by four steps of iteration.

    A little above it where others lie close; 0 where it is not above 1/2. One decomposition, of G + P/2,
    both shows that it is above and serves the inverse iteration.
    """
    if not bool((ridge > 0).all()):
        return 0.0
    try:
        factor = statistics.gram.regular(ridge / 2)
    except ArithmeticError:
        return 0.0
    scale = ridge.sqrt()[:, None]
    x = torch.ones_like(scale)
    for _ in range(4):
        x = scale * factor.solve(scale * (x / x.norm()))
    return 0.5 + float(1 / x.norm())


def without(sums: Statistics, share: Statistics) -> Statistics:
    """sums - share, of which no eigenvalue is far under zero. Raises ForgettingError."""
    left = combined(sums, share, sign=-1)
    confirm_counts(left)
    if not left.total:
        return nothing(sums.gram.width, sums.Q.device, left.classes)
    left.Q[:, left.counts == 0] = 0.0
    ridge = 0.5e-6 * sums.gram.trace / sums.gram.width
    try:
        left.gram.regular(left.Q.new_full((left.gram.width,), ridge))
    except ArithmeticError as error:
        raise ForgettingError(
            "an eigenvalue of what remains would be negative: these are not in the sums"
        ) from error
    return left
