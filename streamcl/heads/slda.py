"""Streaming linear discriminant analysis (arXiv 1909.01520): class means under one shared covariance."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from streamcl.heads.ridge import RidgeHead
from streamcl.heads.statistics import Statistics


class SLDAHead(RidgeHead):
    """Scores [N, C]: log p(x | class) - log p(x | all), Gaussians that share the covariance within classes.

    With Sigma = (G - sum_c n_c mu_c mu_c^T) / n, m the mean of everything and
    Lambda = [(1 - eps) Sigma + eps tr(Sigma) / D I]^-1, the score of class c is
    (x - m)^T Lambda (mu_c - m) - (mu_c - m)^T Lambda (mu_c - m) / 2; classes have equal priors, as published.
    `shrinkage` is eps. The paper updates Sigma with the distance to the class mean of the moment, which
    makes it depend on the order; here Sigma is derived from the sums of the ridge head, G, Q and the counts,
    so it depends on no order, and samples are forgotten exactly, in the same way and with the same refusals.
    """

    def __init__(
        self,
        width: int,
        *,
        shrinkage: float = 1e-2,
        projection: int | None = None,
        seed: int = 0,
        refit_fraction: float = 0.05,
        device: torch.device | str = "cpu",
        defer_solve: int | None = None,
    ) -> None:
        if not 0 < shrinkage < 1:
            raise ValueError(f"shrinkage is {shrinkage}, expected a number between 0 and 1")
        super().__init__(
            width,
            projection=projection,
            seed=seed,
            trace_ridge=shrinkage,
            refit_fraction=refit_fraction,
            device=device,
            rule=functools.partial(_solve_discriminant, shrinkage),
            defer_solve=defer_solve,
        )

    def link(self, scores: Tensor) -> Tensor:
        """Return scores [N, C], the same [N, C]: they are logarithms of likelihoods already."""
        return scores


def _solve_discriminant(
    shrinkage: float, statistics: Statistics, variance_ridge: float | None
) -> tuple[Tensor, Tensor]:
    """W [D, C] and b [C], float64."""
    del variance_ridge  # not of this rule
    Q, counts, total = statistics.Q, statistics.counts, statistics.total
    if total == 0:
        return torch.zeros_like(Q), torch.zeros_like(Q[0])
    mean = Q.sum(dim=1) / total  # [D], as every sample has one class
    means = Q / counts.clamp(min=1)  # [D, C]; a class without samples is masked in the scores
    within = (means * counts.double().sqrt()).T  # [C, D]; G less its outer products is n Sigma
    trace, width = statistics.gram.trace, statistics.gram.width
    share = (1 - shrinkage) / total
    spread = (trace - float(within.square().sum())) / total / width
    floor = 1e-9 * trace / total / width  # every sample at its class mean: no variance
    ridge = mean.new_full((width,), (max(shrinkage * spread, floor) or 1.0) / share)
    apart = means - mean[:, None]
    W = statistics.gram.regularised(ridge, less=within).solve(apart) / share
    return W, -(mean @ W) - (apart * W).sum(dim=0) / 2
