"""How sharp a softmax over regression scores must be for its probabilities to be true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl.learners.rollback import Rollback
from streamcl.protocols import State

SHARPNESS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
DECAY = 0.95  # a batch; the last twenty or so decide


class Calibration:
    """Picks the factor on the scores under which the labels of late were likeliest before they were learned.

    Temperature scaling (arXiv 1706.04599) on test-then-train predictions, over a fixed grid. It changes how
    sure a guess is, never which class is guessed. Its state is one running loss for each factor.
    """

    def __init__(self) -> None:
        self._losses = torch.zeros(len(SHARPNESS), dtype=torch.float64)

    @property
    def sharpness(self) -> float:
        """The factor in use; 16 before anything was seen."""
        return SHARPNESS[int(self._losses.argmin())] if bool(self._losses.any()) else 16.0

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Take scores [B, C] that were made before targets [B], columns below C, were learned."""
        if not len(targets):
            return
        losses = [float(F.cross_entropy(factor * scores, targets)) for factor in SHARPNESS]
        self._losses = DECAY * self._losses + torch.tensor(losses, dtype=torch.float64)

    def savepoint(self) -> Rollback:
        """Return a callable that restores the present losses."""
        losses = self._losses

        def restore() -> None:
            self._losses = losses

        return restore

    def state_dict(self) -> State:
        """The running losses."""
        return {"losses": self._losses.numpy().copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the calibration that returned `state`."""
        self._losses = torch.from_numpy(state["losses"].copy())
