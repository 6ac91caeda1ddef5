"""From class scores to predictions, their calibration, and the losses that detectors and metrics read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl.events import Prediction
from streamcl.nn.fast_paths import norms
from streamcl.protocols import Rollback, State, savepoint_of

SHARPNESS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
DECAY = 0.95  # a batch; the last twenty or so decide


def to_predictions(logits: Tensor, names: Sequence[str]) -> tuple[Prediction, ...]:
    """Return the best class of each row and its softmax probability; None and 0 where no class has a score.

    That is without classes, after the samples of every class have been erased (all scores are minus
    infinity), and where scores are not numbers.

    Args:
        logits: [B, C].
        names: the classes of the C columns.
    """
    if not names:
        return (Prediction(None, 0.0),) * len(logits)
    confidence, column = logits.float().softmax(dim=1).max(dim=1)  # [B], [B]
    pairs = zip(column.tolist(), confidence.tolist(), strict=True)
    return tuple(
        Prediction(names[best], sure) if math.isfinite(sure) else Prediction(None, 0.0)
        for best, sure in pairs
    )


def to_ranking(logits: Tensor, names: Sequence[str], top: int) -> list[tuple[Prediction, ...]]:
    """Return the `top` likeliest classes of each row with their probabilities, the likeliest first.

    A class that cannot be predicted, as its samples have been erased, is left out.

    Args:
        logits: [B, C].
        names: the classes of the C columns.
        top: the most classes to return.
    """
    chances, columns = logits.float().softmax(dim=1).topk(min(top, len(names)), dim=1)  # [B, top], [B, top]
    known = logits.gather(1, columns).isfinite()  # [B, top]
    return [
        tuple(Prediction(names[each], sure) for each, sure, is_known in zip(*row, strict=True) if is_known)
        for row in zip(columns.tolist(), chances.tolist(), known.tolist(), strict=True)
    ]


def open_set_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of each target over all columns, [B], in nats.

    Args:
        logits: [B, C].
        targets: int64 [B]. One past the last column is a class never seen: it is given the score 0 in a
            column of its own, as a fresh row of a head would give it.
    """
    width = max(logits.shape[1], int(targets.max()) + 1) if len(targets) else logits.shape[1]
    padded = F.pad(logits.float(), (0, width - logits.shape[1]))
    return F.cross_entropy(padded, targets, reduction="none")


def all_finite(*values: Tensor) -> bool:
    """Return whether every element of every tensor is finite; the device is asked once.

    A norm is infinite or NaN where an element is; where only its square is too large, the elements decide.
    """
    if not values:
        return True
    sizes = torch.stack([norm.double() for norm in norms(values)])
    return bool(sizes.isfinite().all()) or all(bool(torch.isfinite(value).all()) for value in values)


class Calibration:
    """Picks the factor on the scores under which recent labels were likeliest before they were learned.

    Temperature scaling (arXiv 1706.04599) on test-then-train predictions, over a fixed grid. It changes
    confidences, never which class is predicted. Its state is one running loss for each factor.
    """

    def __init__(self) -> None:
        self._losses = torch.zeros(len(SHARPNESS), dtype=torch.float64)

    @property
    def sharpness(self) -> float:
        """The factor in use; 16 before anything was seen."""
        return SHARPNESS[int(self._losses.argmin())] if bool(self._losses.any()) else 16.0

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Add a batch to the running losses.

        Args:
            scores: [B, C], made before the batch was learned.
            targets: int64 [B], columns below C.
        """
        if not len(targets):
            return
        losses = [float(F.cross_entropy(factor * scores, targets)) for factor in SHARPNESS]
        self._losses = DECAY * self._losses + torch.tensor(losses, dtype=torch.float64)

    def savepoint(self) -> Rollback:
        """Return a callable that restores the present losses."""
        return savepoint_of(self, "_losses")

    def state_dict(self) -> State:
        """Return the running losses."""
        return {"losses": self._losses.numpy().copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the calibration that returned `state`."""
        self._losses = torch.from_numpy(state["losses"].copy())
