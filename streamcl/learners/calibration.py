"""Calibration of confidences: a factor on scores, slope and offset of the named class, from unlearned labels.

Temperature scaling (arXiv 1706.04599), then Platt scaling of the named class's confidence. Both change
confidences, never which class is predicted. They are there twice, as two things are predicted: `predict` asks
about classes that are known, by weights of all that is known; a prediction before learning may be of a class
that nobody has seen, and is wrong more often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from streamcl.events import Prediction, Sample
from streamcl.learners.lazy_imports import lazy_imports
from streamcl.learners.predictions import to_predictions
from streamcl.protocols import Rollback, State, savepoint_of

with lazy_imports():
    import torch

    from streamcl.learners import top_label_scaling

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.learners.class_index import ClassIndex

PRIOR_SPREAD = 3.0
"""Root mean square of a sample's logits around their mean that is expected before a label is known. The best
on the development streams is 2 to 5, of whichever head: heads differ in the unit of their scores."""
PRIOR_SAMPLES = 1.0
"""The weight of that expectation, in samples: without it a few samples that are all predicted right would ask
for an infinite factor."""
MIN_CALIBRATION_SAMPLES = 16
"""Held-out samples that a factor is fitted to, at least: its standard error is then about a fifth."""
ITERATIONS = 200
"""Of the search at most: it ends after some ten, where rounding allows no better."""

SPREAD_DECAY = 0.5 ** (1 / 64)
"""By what the weight of older scores falls with each sample: the spread follows weights that change."""
SLOPE_DECAY = 0.9 ** (1 / 64)
"""The same for how far confidences were from accuracy: the last 600 labels or so decide."""
MAX_STEP = 1.0
"""The largest change of the factor's logarithm in one step."""


class _Slopes(NamedTuple):
    """The first and second derivative, by the factor, of the summed log loss in nats."""

    first: float
    second: float


def mean_square(scores: Tensor) -> float:
    """Return the mean over rows of the variance of their finite scores [N, C]; 0 without rows."""
    known = scores.isfinite()
    count = known.sum(dim=1).clamp(min=1)  # [N]
    finite = torch.where(known, scores.double(), 0.0)
    centred = torch.where(known, finite - (finite.sum(dim=1) / count)[:, None], 0.0)
    return float((centred.square().sum(dim=1) / count).mean()) if len(scores) else 0.0


def fitted_sharpness(scores: Tensor, targets: Tensor) -> float | None:
    """Return the factor under which the targets are likeliest, with the prior of PRIOR_SAMPLES samples.

    The log loss and the prior, w (s / s0 - log s), are convex in the factor s, so there is one minimum, which
    lies above zero; it is found by Newton's method within bounds that bisection narrows. None where the
    scores have no spread, with a single class for example.

    Args:
        scores: [N, C], minus infinity for classes that cannot be predicted.
        targets: int64 [N], columns with finite scores.
    """
    square = mean_square(scores)
    if not 0 < square < math.inf:
        return None
    expected = factor = PRIOR_SPREAD / math.sqrt(square)
    low, high = 0.0, math.inf
    for _ in range(ITERATIONS):
        loss = _slopes(scores, targets, factor)
        slope = loss.first + PRIOR_SAMPLES * (1 / expected - 1 / factor)
        low, high = (low, factor) if slope > 0 else (factor, high)
        step = factor - slope / (loss.second + PRIOR_SAMPLES / factor**2)
        if not low < step < high:
            step = math.sqrt(max(low, factor / 100) * min(high, factor * 100))
        if abs(step - factor) <= 4e-16 * factor:
            break
        factor = step
    return factor


def _slopes(scores: Tensor, targets: Tensor, factor: float) -> _Slopes:
    """Return the derivatives at a factor; scores [N, C], targets int64 [N]."""
    scores = scores.double()
    chances = (factor * scores).softmax(dim=1)  # [N, C]
    finite = torch.where(scores.isfinite(), scores, 0.0)
    mean = (chances * finite).sum(dim=1)  # [N]
    spread = (chances * (finite - mean[:, None]).square()).sum(dim=1)
    first = mean - finite.gather(1, targets[:, None])[:, 0]
    return _Slopes(float(first.sum()), float(spread.sum()))


def same_scores(scores: Tensor) -> Tensor:
    """Return scores [N, C] as they are, [N, C]."""
    return scores


class Calibration:
    """The confidences of a learner, for predictions before learning and for those of `predict`.

    The first follow test-then-train predictions: each batch moves the factor so that the mean confidence
    nears the accuracy, samples of classes that nobody has seen included, then slope and offset. The second
    are fitted to held-out samples, which are never learned; where too few are held out the first stand for
    them. The state is three fitted numbers and eight that follow the stream.

    Attributes:
        link: from scores [N, C] to what the factors are on, [N, C], in the same order.
        held_out: the fitted factor; None without one.
        held_out_scaling: the fitted slope and offset, 1 and 0 without.
        running: slope and offset before learning.
    """

    def __init__(self, link: Callable[[Tensor], Tensor] = same_scores) -> None:
        self.link = link
        self.held_out: float | None = None
        self.held_out_scaling = top_label_scaling.NEUTRAL
        self.running = top_label_scaling.RunningScaling()
        self._log = 0.0  # of the running factor, relative to the one that gives scores PRIOR_SPREAD
        self._slope = 0.0  # of the summed confidences by that logarithm
        self._square = 0.0  # mean square of the scores lately; 0 before any

    def before_learning(self, scores: Tensor) -> Tensor:
        """Return the logits [B, C] of scores [B, C] of a batch that is learned next."""
        linked = self.link(scores)
        return self.running.scaling.applied(self._running_factor(linked) * linked)

    def for_predictions(self, scores: Tensor) -> Tensor:
        """Return the logits [B, C] of scores [B, C] by weights of all that is known."""
        if self.held_out is None:
            return self.before_learning(scores)
        return self.held_out_scaling.applied(self.held_out * self.link(scores))

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Let the running numbers follow a batch.

        Args:
            scores: [B, C], made before the batch was learned.
            targets: int64 [B]; one of C or more is a class that was not known.
        """
        scores = self.link(scores)
        square = mean_square(scores)
        if not 0 < square < math.inf:
            return
        factor = self._running_factor(scores)
        self.running.update(factor * scores, targets)
        chances = (factor * scores.double()).softmax(dim=1)  # [B, C]
        confidence, column = chances.max(dim=1)  # [B]
        finite = torch.where(scores.isfinite(), scores.double(), 0.0)
        rise = finite.gather(1, column[:, None])[:, 0] - (chances * finite).sum(dim=1)  # of log confidence
        excess = float(confidence.sum()) - int((column == targets).sum())
        self._slope = SLOPE_DECAY ** len(targets) * self._slope + factor * float((confidence * rise).sum())
        self._log -= max(-MAX_STEP, min(MAX_STEP, excess / (self._slope + PRIOR_SAMPLES)))
        kept = SPREAD_DECAY ** len(targets) if self._square else 0.0
        self._square = kept * self._square + (1 - kept) * square

    def fit(self, scores: Tensor, targets: Tensor) -> None:
        """Fit the confidences of `predict` to held-out samples; have no fit where they are too few.

        Args:
            scores: [N, C], by weights of all that is known.
            targets: int64 [N], columns with finite scores.
        """
        self.drop_fit()
        linked = self.link(scores)
        if len(targets) >= MIN_CALIBRATION_SAMPLES:
            self.held_out = fitted_sharpness(linked, targets)
        if self.held_out is not None:
            own, right = top_label_scaling.confidence_logits(self.held_out * linked, targets)
            self.held_out_scaling = top_label_scaling.fitted_scaling(own, right)

    def drop_fit(self) -> None:
        """Have no fit to held-out samples."""
        self.held_out, self.held_out_scaling = None, top_label_scaling.NEUTRAL

    def restart(self) -> None:
        """Let the running numbers begin anew at the fit, where there is one: none is older then."""
        if self.held_out is not None:
            self._square = (PRIOR_SPREAD / self.held_out) ** 2
            self._log = self._slope = 0.0
            self.running = top_label_scaling.RunningScaling(self.held_out_scaling)

    def _running_factor(self, linked: Tensor) -> float:
        """Return the factor before learning; 1 where the scores say nothing."""
        square = self._square or mean_square(linked)
        if not 0 < square < math.inf:
            return 1.0
        return PRIOR_SPREAD * math.exp(self._log) / math.sqrt(square)

    def savepoint(self) -> Rollback:
        """Return a callable that restores the present numbers."""
        fitted, parts = ("held_out", "held_out_scaling"), (self.running.savepoint(),)
        return savepoint_of(self, *fitted, "running", "_log", "_slope", "_square", parts=parts)

    def state_dict(self) -> State:
        """Return the numbers."""
        slope, offset = self.held_out_scaling
        fitted = {"held_out": self.held_out, "held_out_slope": slope, "held_out_offset": offset}
        running = {"log": self._log, "slope": self._slope, "square": self._square}
        return fitted | running | self.running.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the calibration that returned `state`."""
        state = {**Calibration().state_dict(), **state}  # earlier versions had factors alone
        self.held_out = state["held_out"]
        scaling = state["held_out_slope"], state["held_out_offset"]
        self.held_out_scaling = top_label_scaling.TopLabelScaling(*scaling)
        self._log, self._slope, self._square = state["log"], state["slope"], state["square"]
        self.running.load_state_dict(state)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreCalibration:
    """The capability `calibration` of a learner with the factors of a Calibration.

    Attributes:
        calibration: the learner's.
        read: the features of samples, tensors of one row each.
        score: scores [N, C] of such features, by weights of all that is known.
        index: the classes known.
        features_version: compares equal as long as a sample's features stay the same.
    """

    calibration: Calibration
    read: Callable[[Sequence[Sample]], tuple[Tensor, ...]]
    score: Callable[[tuple[Tensor, ...]], Tensor]
    index: ClassIndex
    features_version: Any = 0

    @property
    def is_fitted(self) -> bool:
        """Whether confidences of `predict` depend on held-out samples and weights alone."""
        return self.calibration.held_out is not None

    def fit(self, features: tuple[Tensor, ...], labels: Sequence[str]) -> None:
        """Fit confidences to held-out samples, of which those of classes without a score are left out.

        Args:
            features: of N samples, as `read` returns them: tensors [N, d]; none for no samples.
            labels: N classes that are known.
        """
        if not labels:
            self.calibration.drop_fit()
            return
        scores = self.score(features)
        targets = self.index.columns(labels, scores.device)
        known = scores.gather(1, targets[:, None])[:, 0].isfinite()
        self.calibration.fit(scores[known], targets[known])

    def predict(self, features: tuple[Tensor, ...]) -> tuple[Prediction, ...]:
        """Return what the learner predicts for samples, of what `read` returned for them: tensors [N, d]."""
        logits = self.calibration.for_predictions(self.score(features))
        return to_predictions(logits, self.index.names)

    def restart(self) -> None:
        """Let what follows predictions before learning begin anew, at the fit where there is one."""
        self.calibration.restart()
