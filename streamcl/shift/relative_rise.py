"""A rule without thresholds in nats: the loss against its own recent level, in units of its own noise.

Beside it, by the same rule, how far the batches' features lie from those before, and a test of the labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.protocols import State
from streamcl.shift.detector import LossDetector
from streamcl.shift.label_change import LabelChange
from streamcl.shift.novelty import Novelty, Values

# The constants were chosen on one half of the synthetic families of benchmarks/shift_detection.py and
# measured on the other half.
_FLOOR = 0.05  # nats, added to every loss: one mistake in a batch of 64 costs about as much
_POWER = 1 / 3  # makes means of skewed losses nearly normal (Wilson and Hilferty, 1931) at every batch size
_MEMORY = 64  # batches that are remembered
_REFERENCE = 32  # batches of the segment that make its level
_MIN_REFERENCE = 4
_WINDOWS = (2, 3, 4, 6, 8, 12)  # batches that may make a rise; never one alone
_THRESHOLD = 2.8  # standard errors
_NOVELTY = 3.5  # the same, of what the loss does not feel; at 2.8 there would be three times the false alarms
_LABELS = 10_000.0  # samples in which chance reports one change of labels, or fewer
_CLIP = 4.5  # noise units: no batch counts for more
_MIN_RISE = 1.1**_POWER - 1  # ten per cent of loss
_MIN_NOISE = 0.02 * _POWER  # two per cent of loss
_WARM_UP = 8  # batches before anything is said
_MIN_SEGMENT = 8  # batches between two shifts
_HALF = 5  # batches; a plateau compares the last five with the five before


class RelativeRiseDetector(LossDetector):
    """Works on y = (loss + 0.05)^(1/3), in which noise in proportion to the loss is nearly normal.

    shift: for some w of 2 to 12, the mean of the last w values of y lies more than `loss_threshold` standard
    errors, and at least ten per cent of loss, above the level of the segment before them. That level is the
    mean of up to 32 values, or of the last quarter of them where they fall. The noise is a share of the
    level, from quantiles of the differences of neighbours over the last 64 values, whatever their segment.
    Of the w values the largest counts no more than the second largest, so one bad batch is never a shift,
    and two in a row can be. The new segment begins at those w.
    plateau: once a segment, ten updates after its shift or later, when the last five values have not fallen
    below the five before by more than the noise explains. The stream's beginning counts as a shift.
    So shifts that losses show are at least eight updates apart, and consolidations ten, whatever they are.

    Where the learner shows features that do not move (see `look`), their novelty is a second series under the
    same rule, with a threshold of its own, `feature_threshold` (None: the loss alone). It sees a change of
    domain that the learner takes in its stride.

    Where it is shown labels (see `look_at_labels`), other classes than before are a shift as well, by a test
    of single samples that needs no batches in between (see `LabelChange`): by chance no more often than once
    in `label_threshold` samples (None: labels are not read).
    """

    def __init__(
        self,
        loss_threshold: float = _THRESHOLD,
        feature_threshold: float | None = _NOVELTY,
        label_threshold: float | None = _LABELS,
    ) -> None:
        units = "standard errors"
        _check_positive("loss_threshold", loss_threshold, units)
        _check_positive("feature_threshold", feature_threshold, units)
        _check_positive("label_threshold", label_threshold, "samples")
        self._threshold = loss_threshold
        self._novelty = Novelty()
        self._strange = (
            None if feature_threshold is None else RelativeRiseDetector(feature_threshold, None, None)
        )
        self._labels = None if label_threshold is None else LabelChange(label_threshold)
        self._values: list[float] = []
        self._segment = 0  # how many of the last values belong to the present segment
        self._since = 0  # updates since the last shift
        self._plateau_seen = False

    def look(self, features: npt.NDArray[Any]) -> None:
        """Take features [B, d] of samples whose loss comes with the next update."""
        if self._strange is not None:
            self._novelty.add(features)

    def drop_features(self) -> None:
        """Drop the features looked at; how novel each batch was, one figure, stays."""
        self._novelty.drop()

    def look_at_labels(self, labels: Sequence[str]) -> None:
        """Take the labels of the samples whose losses come with the next update, in their order."""
        if self._labels is not None:
            self._labels.add(labels)

    def drop_labels(self) -> None:
        """Drop the labels looked at."""
        if self._labels is not None:
            self._labels.drop()

    def _update(self, loss: float) -> None:
        self._values = [*self._values, (max(loss, 0.0) + _FLOOR) ** _POWER][-_MEMORY:]
        self._segment = min(self._segment + 1, _MEMORY)
        self._since += 1
        strange, relabelled = self._looked(), None if self._labels is None else self._labels.take()
        if relabelled is not None:
            self._begin(relabelled, 2)
        if len(self._values) < _WARM_UP:
            return
        noise = _noise(np.array(self._values))
        segment = np.array(self._values[-self._segment :])
        if self._since >= _MIN_SEGMENT:
            self._seek_shift(segment, noise)
            if self.shift is None and strange is not None:
                self._begin(strange, 2)
            if self.shift is not None:
                self.drop_labels()
        if self.shift is None and not self._plateau_seen and self._since >= 2 * _HALF:
            self._seek_plateau(segment, noise)

    def _seek_shift(self, segment: Values, noise: float) -> None:
        for w in _WINDOWS:
            if len(segment) - w < _MIN_REFERENCE:
                return
            level, error = _level(segment[:-w][-_REFERENCE:], noise)
            rise = float(_trimmed(segment[-w:] / level, noise).mean()) - 1
            errors = rise / math.hypot(noise / math.sqrt(w), error)
            if rise > _MIN_RISE and errors > self._threshold:
                why = (
                    f"loss {_loss(level * (1 + rise)):.3g} over {w} batches after {_loss(level):.3g}: "
                    f"{errors:.1f} standard errors at {noise / _POWER:.0%} noise"
                )
                self._begin(why, w)
                return

    def _begin(self, why: str, batches: int) -> None:
        """Begin a segment, of which so many batches have passed."""
        self.shift, self._segment, self._since, self._plateau_seen = why, batches, 0, False

    def _looked(self) -> str | None:
        """Return why the features that were looked at show a shift, or None."""
        distance = None if self._strange is None else self._novelty.take()
        if self._strange is None or distance is None:
            return None
        self._strange.update(distance)
        why = self._strange.shift
        return None if why is None else f"features lie apart: {why.removeprefix('loss ')}"

    def _seek_plateau(self, segment: Values, noise: float) -> None:
        older, newer = _bounded(segment[-2 * _HALF :], noise).reshape(2, _HALF).mean(axis=1)
        explained = noise * math.sqrt(2 / _HALF)
        if older - newer < explained * older:
            self._plateau_seen = True
            self.plateau = (
                f"loss {_loss(newer):.3g} over {_HALF} batches after {_loss(older):.3g}: "
                f"no more of a fall than {noise / _POWER:.0%} noise explains"
            )

    def state_dict(self) -> State:
        """Return the remembered values, where the segment began, and what the last update reported."""
        state: State = {
            "values": np.array(self._values, np.float64),
            "segment": self._segment,
            "since": self._since,
            "plateau_seen": self._plateau_seen,
            "shift": self.shift,
            "plateau": self.plateau,
        }
        if self._strange is not None:
            state |= {"novelty": self._novelty.state_dict(), "strange": self._strange.state_dict()}
        if self._labels is not None:
            state["labels"] = self._labels.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the detector that returned `state`, made with the same arguments."""
        self._values = [float(value) for value in state["values"]]
        self._segment = int(state["segment"])
        self._since = int(state["since"])
        self._plateau_seen = bool(state["plateau_seen"])
        self.shift = state["shift"]
        self.plateau = state["plateau"]
        if self._strange is not None and "strange" in state:
            self._novelty.load_state_dict(state["novelty"])
            self._strange.load_state_dict(state["strange"])
        if self._labels is not None and "labels" in state:
            self._labels.load_state_dict(state["labels"])


def _check_positive(name: str, value: float | None, unit: str) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"{name} is {value}, expected a positive number of {unit}")


def _loss(value: float) -> float:
    return max(float(value ** (1 / _POWER)) - _FLOOR, 0.0)


def _noise(values: Values) -> float:
    """Return the deviation of one value, as a share of the level, from the differences of neighbours."""
    differences = 2 * np.abs(np.diff(values)) / (values[1:] + values[:-1])
    middle, tail = np.quantile(differences, (0.5, 0.85)) / (0.674 * math.sqrt(2), 1.440 * math.sqrt(2))
    few = 1 + 4 / len(differences)  # quantiles of few differences are often too small
    return max(few * float(max(middle, tail)), _MIN_NOISE)


def _bounded(values: Values, noise: float) -> Values:
    """Return the values, outliers drawn in to three deviations from the median."""
    middle = np.median(values)
    return np.clip(values, middle * (1 - 3 * noise), middle * (1 + 3 * noise))


def _level(reference: Values, noise: float) -> tuple[float, float]:
    """Return the mean of the reference, or of its last quarter where it falls, and the relative error."""
    values = _bounded(reference, noise)
    count = len(values)
    steps = np.arange(count) - (count - 1) / 2
    square = float((steps**2).sum())
    slope = float(steps @ values) / square
    mean = float(values.mean())
    if slope > -2 * noise * mean / math.sqrt(square):
        return mean, noise / math.sqrt(count)
    tail = values[-max(_MIN_REFERENCE, count // 4) :]  # a line's end would lie below a fall that flattens
    return float(tail.mean()), noise / math.sqrt(len(tail))


def _trimmed(recent: Values, noise: float) -> Values:
    """Limit values, as multiples of the level, to the second largest and to the clip above 1."""
    return np.minimum(recent, min(float(np.sort(recent)[-2]), 1 + _CLIP * noise))
