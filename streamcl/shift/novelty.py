"""How far a batch lies from those before it, in features that do not move: sees what the loss does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from streamcl.protocols import State

Values: TypeAlias = npt.NDArray[np.float64]

_REFERENCE = 16  # batches whose mean a batch is held against
_MEMORY = 0.9  # of the variance, a batch
_FLOOR = 1e-3  # of the mean variance, for features that hardly vary


class Novelty:
    """The squared distance of a batch's mean feature from that of up to 16 batches before it.

    In units of what chance gives: each feature's variance within batches, divided by the samples. So it is
    about 1 while nothing changes, whatever the features are, and more where neighbours are alike, as in a
    video. Samples wait until they are looked at, so that small batches can be gathered.
    """

    def __init__(self) -> None:
        self._waiting: Values | None = None  # [2, d]: sums of features that wait, and of their squares
        self._count = 0
        self._means: list[Values] = []  # [d] each
        self._shares: list[float] = []  # 1 / samples of each
        self._variance: Values | None = None  # [d]

    def add(self, features: npt.NDArray[Any]) -> None:
        """Take features [B, d] of the next samples."""
        values = np.asarray(features, np.float64)
        sums = np.stack([values.sum(axis=0), np.square(values).sum(axis=0)])
        self._waiting = sums if self._waiting is None else self._waiting + sums
        self._count += len(values)

    def take(self) -> float | None:
        """Return how far the waiting samples lie from those before, to which they then belong.

        None for the first ones, for fewer than two, which keep waiting, and where nothing has ever varied.
        """
        if self._waiting is None or self._count < 2:
            return None
        mean, square = self._waiting / self._count
        variance = np.maximum(square - mean**2, 0.0) * (self._count / (self._count - 1))
        if self._variance is not None:
            variance = _MEMORY * self._variance + (1 - _MEMORY) * variance
        distance = self._distance(mean, variance)
        self._variance = variance
        self._means = [*self._means, mean][-_REFERENCE:]
        self._shares = [*self._shares, 1 / self._count][-_REFERENCE:]
        self._waiting, self._count = None, 0
        return distance

    def _distance(self, mean: Values, variance: Values) -> float | None:
        if not self._means or not variance.any():
            return None
        chance = 1 / self._count + float(np.mean(self._shares)) / len(self._means)
        apart = np.square(mean - np.mean(self._means, axis=0)) / (variance + _FLOOR * variance.mean())
        return float(apart.mean()) / chance

    def drop(self) -> None:
        """Begin anew: nothing of any sample is left."""
        self._waiting = self._variance = None
        self._count, self._means, self._shares = 0, [], []

    def state_dict(self) -> State:
        """Return the sums that wait, and the means that they will be compared with."""
        return {
            "waiting": None if self._waiting is None else self._waiting.copy(),
            "count": self._count,
            "means": np.array(self._means, np.float64),
            "shares": np.array(self._shares, np.float64),
            "variance": None if self._variance is None else self._variance.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the novelty that returned `state`."""
        self._waiting = _array(state["waiting"])
        self._count = int(state["count"])
        self._means = [np.array(mean, np.float64) for mean in state["means"]]
        self._shares = [float(share) for share in state["shares"]]
        self._variance = _array(state["variance"])


def _array(values: Any) -> Values | None:
    return None if values is None else np.array(values, np.float64)
