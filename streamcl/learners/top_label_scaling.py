"""Platt scaling of the confidence in the predicted class: two numbers on its logit, fitted or followed.

Applied after the factor of `calibration`, where confidences are too low when they are high or the other way
round, which no factor mends (top-label calibration, arXiv 2107.08353).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from streamcl.learners.lazy_imports import lazy_imports
from streamcl.protocols import Rollback, State, savepoint_of

with lazy_imports():
    import torch
    from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

PRIOR = 5.0
"""Weight of slope 1 and offset 0 in a fit: half of it, times the squared distance from them, is added to the
log loss in nats. It was chosen among 0, 1, 2, 5, 10 and 20, for fits to 60 and to 256 samples."""
MIN_LEAD = 1e-3
"""By how much the predicted class's logit stays above every other one, or by as much as it was before."""
SCALING_ITERATIONS = 100
"""Of Newton's method at most: it ends after some five, where rounding allows no better."""

RUNNING_PRIOR = 20.0
"""The same weight for numbers that follow a stream, in each of their steps."""
RUNNING_DECAY = math.exp(-1 / 300)
"""By what the weight of older samples falls with each sample: the last 300 or so decide."""
MAX_SCALING_STEP = 1.0
"""The largest change of slope or offset by one batch."""

STATE = ("running_slope", "running_offset", "curvature_slope", "curvature_both", "curvature_offset")
"""The numbers that follow a stream, as a state names them."""


class TopLabelScaling(NamedTuple):
    """The logit of the confidence in the predicted class is slope times what it was, plus an offset."""

    slope: float = 1.0
    offset: float = 0.0

    def applied(self, logits: Tensor) -> Tensor:
        """Return logits [N, C] for logits [N, C]: those of the predicted classes change and stay the highest.

        The other classes keep the ratios of their probabilities. Rows without two finite logits stay as they
        are.
        """
        if logits.shape[1] < 2:
            return logits
        column = _predicted(logits)  # [N, 1]
        top, others = logits.gather(1, column), logits.scatter(1, column, -math.inf)
        rest = others.logsumexp(dim=1, keepdim=True)  # [N, 1]
        wanted = rest + self.slope * (top - rest) + self.offset
        lead = torch.minimum(top, others.amax(dim=1, keepdim=True) + MIN_LEAD)
        scaled = torch.where((top - rest).isfinite(), torch.maximum(wanted, lead), top)
        return logits.scatter(1, column, scaled)


NEUTRAL = TopLabelScaling()
"""Confidences as they are."""


def confidence_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of the confidences in the predicted classes, and 1.0 where these are right, else 0.0.

    Args:
        logits: [N, C]; rows without two finite ones are left out.
        targets: int64 [N]; one of C or more is right nowhere.

    Returns:
        Two float64 tensors [M], M at most N.
    """
    logits = logits.double()
    if logits.shape[1] < 2:
        return logits.new_empty(0), logits.new_empty(0)
    column = _predicted(logits)
    top, rest = logits.gather(1, column), logits.scatter(1, column, -math.inf).logsumexp(dim=1, keepdim=True)
    own = (top - rest)[:, 0]
    known = own.isfinite()
    return own[known], (column[:, 0] == targets)[known].double()


def _predicted(logits: Tensor) -> Tensor:
    """Return the columns int64 [N, 1] of the predicted classes of logits [N, C], as `to_predictions` does."""
    return logits.float().softmax(dim=1).max(dim=1, keepdim=True).indices


def fitted_scaling(own: Tensor, right: Tensor) -> TopLabelScaling:
    """Return slope and offset under which being right or wrong is likeliest, with the weight of PRIOR.

    The log loss and the prior are convex, so there is one minimum, which Newton's method finds: it halves a
    step that does not lower them.

    Args:
        own: float64 [N], logits of confidences.
        right: float64 [N], 1.0 where the prediction is right, else 0.0.
    """
    found, neutral = own.new_tensor(NEUTRAL), own.new_tensor(NEUTRAL)
    weight = PRIOR * torch.eye(2, dtype=own.dtype, device=own.device)

    def loss(numbers: Tensor) -> float:
        data = F.binary_cross_entropy_with_logits(numbers[0] * own + numbers[1], right, reduction="sum")
        return float(data + PRIOR / 2 * (numbers - neutral).square().sum())

    for _ in range(SCALING_ITERATIONS):
        first, second = _derivatives(own, right, found)
        step = torch.linalg.solve(second + weight, first + PRIOR * (found - neutral))
        before = loss(found)
        while loss(found - step) > before and float(step.abs().max()) > 1e-6:
            step = step / 2
        found = found - step
        if float(step.abs().max()) <= 1e-15 * float(found.abs().max()):
            break
    return TopLabelScaling(*found.tolist())


def _derivatives(own: Tensor, right: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the derivatives [2] and [2, 2] of the log loss, in nats, by slope and offset.

    Args:
        own: float64 [N], logits of confidences.
        right: float64 [N].
        numbers: [2], slope and offset.
    """
    confidence = (numbers[0] * own + numbers[1]).sigmoid()
    rows = torch.stack([own, torch.ones_like(own)], dim=1)  # [N, 2]
    spread = confidence * (1 - confidence)
    return rows.T @ (confidence - right), rows.T @ (spread[:, None] * rows)


class RunningScaling:
    """Slope and offset that follow a stream: each batch is a step of Newton's method (arXiv 2305.00070).

    The state is five numbers: both, and the decaying sums of second derivatives that scale the step.

    Args:
        scaling: where both begin.

    Attributes:
        scaling: the present slope and offset.
    """

    def __init__(self, scaling: TopLabelScaling = NEUTRAL) -> None:
        self.scaling = scaling
        self._curvature: tuple[float, ...] = (
            0.0,
            0.0,
            0.0,
        )  # by slope twice, by slope and offset, by offset twice

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Move both numbers.

        Args:
            logits: [B, C], made before the batch was learned, without this scaling.
            targets: int64 [B]; one of C or more is a class that was not known.
        """
        own, right = confidence_logits(logits, targets)
        first, second = _derivatives(own, right, own.new_tensor(self.scaling))
        kept = RUNNING_DECAY ** len(targets)
        new = second.flatten().tolist()
        self._curvature = tuple(
            kept * old + new[k] for old, k in zip(self._curvature, (0, 1, 3), strict=True)
        )
        slope, both, offset = self._curvature
        second = second.new_tensor([[slope + RUNNING_PRIOR, both], [both, offset + RUNNING_PRIOR]])
        step = torch.linalg.solve(second, first).clamp(-MAX_SCALING_STEP, MAX_SCALING_STEP).tolist()
        self.scaling = TopLabelScaling(self.scaling.slope - step[0], self.scaling.offset - step[1])

    def savepoint(self) -> Rollback:
        """Return a callable that restores the present numbers."""
        return savepoint_of(self, "scaling", "_curvature")

    def state_dict(self) -> State:
        """Return the five numbers."""
        return dict(zip(STATE, (*self.scaling, *self._curvature), strict=True))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the one that returned `state`."""
        slope, offset, *curvature = (state[name] for name in STATE)
        self.scaling, self._curvature = TopLabelScaling(slope, offset), tuple(curvature)
