"""Scores that a ridge head would give each of its samples, had it not learned that one: exact, in one solve.

The residual of a sample left out of a linear regression is e_i / (1 - h_ii), with its residual e_i and its
leverage h_ii (PRESS: Allen, Technometrics 16, 1974). The ridges are those of all samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl.heads.cross_validation import cross_validated_ridge_of
from streamcl.heads.solving import floored_variance, rarity


def leave_one_out_scores(
    rows: Tensor,
    targets: Tensor,
    *,
    trace_ridge: float = 1e-2,
    variance_ridge: float | None = None,
    gcv_margin: float | None = None,
) -> Tensor:
    """Return float64 [N, C]: the scores of each sample by a `RidgeHead` that has learned all the others.

    Computed from products of the samples, [N, N], so it is meant for some hundreds of them. Minus infinity
    for a class that has no other sample.

    Args:
        rows: features [N, D], those that the head sums.
        targets: int64 [N], from 0 to C - 1.
        trace_ridge: as of `RidgeHead`.
        variance_ridge: as of `RidgeHead`.
        gcv_margin: as of `RidgeHead`.
    """
    features, one_hot = rows.double(), F.one_hot(targets).double()  # [N, D], [N, C]
    centred = features - features.mean(dim=0)
    scaled = centred * _ridge(features, targets, trace_ridge, variance_ridge, gcv_margin).rsqrt()
    values, basis = torch.linalg.eigh(scaled @ scaled.T)
    shrinkage = values.clamp(min=0) / (values.clamp(min=0) + 1)  # [N]
    fitted = basis @ (shrinkage[:, None] * (basis.T @ one_hot)) + one_hot.mean(dim=0)
    leverage = basis.square() @ shrinkage + 1 / len(rows)  # [N], that of the intercept included
    left_out: Tensor = (fitted - leverage[:, None] * one_hot) / (1 - leverage[:, None])
    counts: Tensor = one_hot.sum(dim=0) - one_hot  # [N, C], of the others
    if variance_ridge is not None:
        left_out = _raised(left_out - counts / (len(rows) - 1), counts, targets)
    return left_out.masked_fill(counts == 0, -math.inf)


def _ridge(
    rows: Tensor,
    targets: Tensor,
    trace_ridge: float,
    variance_ridge: float | None,
    gcv_margin: float | None,
) -> Tensor:
    """[D]: the ridge of each feature, as `normal_equations` has it for all samples."""
    centred = rows - rows.mean(dim=0)
    if variance_ridge is None:
        trace = max(float(centred.square().sum()), 1e-9 * float(rows.square().sum()))
        ridge = rows.new_full((rows.shape[1],), trace_ridge * trace / rows.shape[1])
    else:
        strength = variance_ridge
        if gcv_margin is not None:
            strength = cross_validated_ridge_of(rows, targets, variance_ridge, gcv_margin)
        ridge = strength * floored_variance(centred.square().mean(dim=0))
    return torch.where(ridge > 0, ridge, 1.0)


def _raised(moved: Tensor, counts: Tensor, targets: Tensor) -> Tensor:
    """Return scores [N, C] with each class's column raised by its rarity among the other samples.

    Args:
        moved: [N, C], the scores less the shares of the classes.
        counts: [N, C], of the other samples.
        targets: int64 [N].
    """
    raised = torch.empty_like(moved)
    for target in targets.unique():
        own = targets == target
        others = counts[own][0].long()  # alike for all samples of a class
        scale = rarity(others, len(targets) - 1).double()
        raised[own] = moved[own] * scale + 1 / max(int((others > 0).sum()), 1)
    return raised
