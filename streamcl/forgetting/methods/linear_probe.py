"""A row for a class that the head does not have: what an attacker would fit to show that it is known."""

from __future__ import annotations

import torch
from torch import Tensor

MARGIN = 2.0
"""Nats by which the probe's score of its class exceeds all others together: a sure answer of 0.88."""

PROBE_RIDGE = 1e-2


class LinearProbe:
    """The ridge regression of class (1) or not (0) on features, scaled to be a row beside the head's others.

    features [F, d] with logits [F, C] are of the class, others [R, d] are not. A regression of 1 outweighs
    all other columns by MARGIN; features that do not tell the class apart give it no more than half of that.
    """

    def __init__(self, features: Tensor, logits: Tensor, others: Tensor) -> None:
        self._weight, self._bias = _fit(features.detach(), others)
        top = logits.detach().logsumexp(dim=1).mean() if logits.shape[1] else logits.new_zeros(())
        self._scale = top + MARGIN

    def beside(self, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, C + 1] with the probe's column last, and its number for every row, [B]."""
        score = self._scale * (features @ self._weight + self._bias)
        targets = torch.full((len(features),), logits.shape[1], device=logits.device)
        return torch.cat([logits, score[:, None]], dim=1), targets


def _fit(features: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Each side weighs one half, however many samples it has."""
    x = torch.cat([features, others]).double()
    y = torch.cat([x.new_ones(len(features)), x.new_zeros(len(others))])
    share = 0.5 * (y / max(1, len(features)) + (1 - y) / max(1, len(others)))
    mean = share @ x
    centred = (x - mean) * share.sqrt()[:, None]
    gram = centred @ centred.T  # [N, N]: fewer samples than features
    gram.diagonal().add_(PROBE_RIDGE * gram.trace() / len(gram) + 1e-12)
    weight = centred.T @ torch.linalg.solve(gram, (y - 0.5) * share.sqrt())
    weight, bias = weight.to(features.dtype), (0.5 - mean @ weight).to(features.dtype)
    return weight, bias
