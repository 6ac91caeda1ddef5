"""Predictive multiplicity: how far equally good models disagree (arXiv 2402.00728, arXiv 2206.01295)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

CAPACITY_TOLERANCE = 1e-6
"""Nats between the bounds of a capacity at which the iteration ends."""
MAX_CAPACITY_ITERATIONS = 20_000
"""The bounds close like 1 / iterations at worst, where models are superfluous but nearly of use."""


class Multiplicity(NamedTuple):
    """How far M models disagree on N samples. Scores are probabilities of a class.

    viable_range: [N], of the score of the reference's class, from the lowest to the highest of all models.
    score_variance: [N], of the same. capacity: [N], in bits, see `rashomon_capacity`. ambiguity: share of
    samples on which any model predicts another class than the reference. discrepancy: the largest share of
    samples on which one model does.
    """

    viable_range: Tensor
    score_variance: Tensor
    capacity: Tensor
    ambiguity: float
    discrepancy: float


def multiplicity(
    chances: Tensor, reference: Tensor, *, tolerance: float = CAPACITY_TOLERANCE
) -> Multiplicity:
    """Return how far models disagree.

    Args:
        chances: [M, N, C], the probability of each class by each of M models, one or more.
        reference: [N, C], those by the model that is in use.
        tolerance: of the capacities, in nats.
    """
    chances, predicted = chances.double(), reference.argmax(dim=1)  # [N]
    scores = chances.gather(2, predicted.expand(len(chances), -1)[..., None])[..., 0]  # [M, N]
    other = chances.argmax(dim=2) != predicted  # [M, N]
    return Multiplicity(
        scores.amax(dim=0) - scores.amin(dim=0),
        scores.var(dim=0, correction=0),
        rashomon_capacity(chances.transpose(0, 1), tolerance=tolerance),
        float(other.any(dim=0).double().mean()),
        float(other.double().mean(dim=1).max()),
    )


def rashomon_capacity(chances: Tensor, *, tolerance: float = CAPACITY_TOLERANCE) -> Tensor:
    """Return max over p(m) of I(M; Y), [N], in bits: 0 where all models say the same, at most log2 C.

    It is the capacity of the channel from models to classes (arXiv 2206.01295), by the iteration of Arimoto
    and Blahut; the bounds that each step gives end it. In logarithms, so that a probability of 0 counts as
    the limit that it is.

    Args:
        chances: [N, M, C], rows that sum to 1.
        tolerance: nats between the bounds at which the iteration ends.
    """
    chances = chances.double()
    own = torch.special.xlogy(chances, chances).sum(dim=2)  # [N, M], less the entropy of each row
    weights = chances.new_full(chances.shape[:2], 1 / chances.shape[1])  # [N, M], of the models
    low = chances.new_zeros(len(chances))
    for _ in range(MAX_CAPACITY_ITERATIONS):
        mean = torch.einsum("nm,nmc->nc", weights, chances)
        divergence = own - torch.special.xlogy(chances, mean[:, None]).sum(dim=2)  # [N, M]
        low = (weights * divergence).sum(dim=1)
        if bool((divergence.amax(dim=1) - low <= tolerance).all()):
            break
        weights = weights * (divergence - divergence.amax(dim=1, keepdim=True)).exp()
        weights /= weights.sum(dim=1, keepdim=True)
    return (low / math.log(2)).clamp(min=0)
