"""Turns class scores into guesses, and scores and labels into the losses that detectors and metrics read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl.events import Prediction
from streamcl.nn.fast_paths import norms


def to_predictions(logits: Tensor, names: Sequence[str]) -> tuple[Prediction, ...]:
    """The best class of each row of logits [B, C] and its softmax probability; no class known, no guess."""
    if not names:
        return (Prediction(None, 0.0),) * len(logits)
    confidence, column = logits.float().softmax(dim=1).max(dim=1)  # [B], [B]
    pairs = zip(column.tolist(), confidence.tolist(), strict=True)
    return tuple(Prediction(names[best], sure) for best, sure in pairs)


def open_set_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats, [B], of targets [B] under logits [B, C] over all columns.

    A target past the last column is a class never seen: it is given the score 0 in a column of its own,
    as a fresh row of a head would give it.
    """
    width = max(logits.shape[1], int(targets.max()) + 1) if len(targets) else logits.shape[1]
    padded = F.pad(logits.float(), (0, width - logits.shape[1]))
    return F.cross_entropy(padded, targets, reduction="none")


def all_finite(*values: Tensor) -> bool:
    """Whether every element of every tensor is finite; asks the device once.

    A norm is infinite or NaN where an element is; where only its square is too large, the elements decide.
    """
    if not values:
        return True
    sizes = torch.stack([norm.double() for norm in norms(values)])
    return bool(sizes.isfinite().all()) or all(bool(torch.isfinite(value).all()) for value in values)
