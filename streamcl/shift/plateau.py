"""The paper's rule: absolute thresholds on the mean and variance of a window of losses (arXiv 2411.05663)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from streamcl.protocols import State
from streamcl.shift.detector import LossDetector


class PlateauDetector(LossDetector):
    """A plateau is a full window of low, steady loss; a shift is a window above the last plateau.

    With mean mu and population variance v of the last `window` losses, and mu*, v* those at the last plateau:
    shift where mu > mu* + sqrt(v*); plateau where mu < mean_threshold and v < variance_threshold and a
    shift has been seen since the last plateau. One is assumed at the start, so the first is a plateau.
    """

    def __init__(self, mean_threshold: float, variance_threshold: float, window: int = 5) -> None:
        if window < 2:
            raise ValueError(f"window is {window}, expected 2 or more: one loss has no variance")
        self._mean_threshold = mean_threshold
        self._variance_threshold = variance_threshold
        self._window = window
        self._losses: list[float] = []
        self._last_plateau: list[float] | None = None  # mean and variance at the last plateau
        self._risen = True

    def _update(self, loss: float) -> None:
        self._losses = [*self._losses, loss][-self._window :]
        if len(self._losses) == self._window:
            self._judge(float(np.mean(self._losses)), float(np.var(self._losses)))

    def _judge(self, mean: float, variance: float) -> None:
        if not self._risen and self._last_plateau is not None:
            limit = self._last_plateau[0] + math.sqrt(self._last_plateau[1])
            if mean > limit:
                self._risen = True
                self.shift = f"mean loss {mean:.4g} above {limit:.4g}, the last plateau and its deviation"
        if self._risen and mean < self._mean_threshold and variance < self._variance_threshold:
            self._risen = False
            self._last_plateau = [mean, variance]
            self.plateau = (
                f"mean loss {mean:.4g} below {self._mean_threshold:g} and "
                f"variance {variance:.3g} below {self._variance_threshold:g}"
            )

    def state_dict(self) -> State:
        """Return the window, the last plateau, and what the last update reported."""
        return {
            "losses": list(self._losses),
            "last_plateau": None if self._last_plateau is None else list(self._last_plateau),
            "risen": self._risen,
            "shift": self.shift,
            "plateau": self.plateau,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the detector that returned `state`, made with the same arguments."""
        self._losses = [float(loss) for loss in state["losses"]]
        self._last_plateau = state["last_plateau"] and [float(value) for value in state["last_plateau"]]
        self._risen = bool(state["risen"])
        self.shift = state["shift"]
        self.plateau = state["plateau"]
