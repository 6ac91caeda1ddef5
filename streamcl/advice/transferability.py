"""Scores of features by their classes, without a classifier: LogME and the H-score.

LogME: You et al., ICML 2021 (arXiv 2102.11005). H-score: Bao et al., ICIP 2019; with shrinkage as of
Ibrahim et al. (arXiv 2110.06893). Neither says as well as a head that is fitted which candidate is best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_STEPS = 100
EVIDENCE_TOLERANCE = 1e-6
"""Relative change of both precisions at which the search for the largest evidence ends."""
MIN_SHRINKAGE = 1e-9
"""Keeps a covariance of fewer samples than features from being singular."""


@dataclass(frozen=True, slots=True, eq=False)
class BayesianRegression:
    """A linear regression whose weights have the prior precision alpha, and its residuals the precision beta.

    spectrum: squared singular values of the features [r]. squares: of the targets, in the basis of the left
    singular vectors [r]. norm: sum of squared targets. count: N samples. width: D features.
    """

    spectrum: Tensor
    squares: Tensor
    norm: float
    count: int
    width: int

    def log_evidence(self, alpha: float, beta: float) -> float:
        """Return the log evidence of a sample at given precisions."""
        weights, residual = self._fit(alpha, beta)
        determinant = float((alpha + beta * self.spectrum).log().sum())
        determinant += (self.width - len(self.spectrum)) * math.log(alpha)
        total = self.width * math.log(alpha) + self.count * math.log(beta / (2 * math.pi)) - determinant
        return (total - beta * residual - alpha * weights) / (2 * self.count)

    def max_log_evidence(self) -> float:
        """Return the largest log evidence of a sample, found by fixed-point steps."""
        alpha = beta = 1.0
        for _ in range(MAX_STEPS):
            before = alpha, beta
            freedom = float((beta * self.spectrum / (alpha + beta * self.spectrum)).sum())
            weights, residual = self._fit(alpha, beta)
            alpha = freedom / max(weights, 1e-300)
            beta = (self.count - freedom) / max(residual, 1e-300)
            if max(abs(alpha / before[0] - 1), abs(beta / before[1] - 1)) < EVIDENCE_TOLERANCE:
                break
        return self.log_evidence(alpha, beta)

    def _fit(self, alpha: float, beta: float) -> tuple[float, float]:
        """Sums of squares of the weights and of the residuals."""
        scale = alpha + beta * self.spectrum
        weights = float((self.spectrum * self.squares * beta**2 / scale.square()).sum())
        outside = max(self.norm - float(self.squares.sum()), 0.0)  # of the targets, that no weights reach
        return weights, outside + float((self.squares * (alpha / scale).square()).sum())


def log_evidence(rows: Tensor, targets: Tensor) -> float:
    """Return LogME: the mean over classes of the largest log evidence of a sample, with targets of 0 and 1.

    Args:
        rows: features [N, D].
        targets: int64 [N].
    """
    one_hot = F.one_hot(targets).double()
    basis, singular, _ = torch.linalg.svd(rows.double(), full_matrices=False)  # [N, r], [r]
    squares, counts = (basis.T @ one_hot).square(), one_hot.sum(dim=0)  # [r, C], [C]
    found = [
        BayesianRegression(singular.square(), squares[:, c], float(counts[c]), *rows.shape).max_log_evidence()
        for c in range(len(counts))
        if counts[c] > 0
    ]
    return sum(found) / len(found)


def h_score(rows: Tensor, targets: Tensor) -> float:
    """Return the H-score, tr(S^-1 B): the variance between classes B in units of the whole variance S.

    S is shrunk to a multiple of the identity (Ledoit and Wolf, 2004), since it is singular where samples are
    fewer than features. Computed from products of the samples, [N, N].

    Args:
        rows: features [N, D].
        targets: int64 [N].
    """
    features, one_hot = rows.double(), F.one_hot(targets).double()
    centred = features - features.mean(dim=0)
    count, width = centred.shape
    products = centred @ centred.T
    level = float(products.diagonal().sum()) / (count * width)  # the mean variance
    if level <= 0:
        return 0.0
    share = shrinkage(products, width, level)
    groups = one_hot / one_hot.sum(dim=0).clamp(min=1).sqrt()  # [N, C]; B = X^T groups groups^T X / N
    inner, part = products @ groups, (1 - share) / count
    system = part * products + share * level * torch.eye(count, dtype=torch.float64)
    explained = inner - part * products @ torch.linalg.solve(system, inner)
    return float((groups * explained).sum()) / (share * level) / count


def shrinkage(products: Tensor, width: int, level: float) -> float:
    """Return the share, 0 to 1, of the identity in the covariance of Ledoit and Wolf.

    Args:
        products: of centred samples [N, N].
        width: D features.
        level: the mean variance of a feature.
    """
    count = len(products)
    squared = float(products.square().sum()) / count**2  # tr(S^2)
    spread = squared / width - level**2
    noise = (float(products.diagonal().square().sum()) / count - squared) / (count * width)
    return min(max(noise / spread, MIN_SHRINKAGE), 1.0) if spread > 0 else 1.0
