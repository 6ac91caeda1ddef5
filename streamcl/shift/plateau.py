"""The paper's rule: absolute thresholds on the mean and variance of a window of losses (arXiv 2411.05663)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from streamcl.protocols import State


class PlateauDetector:
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
        self._settled: list[float] | None = None  # mean and variance at the last plateau
        self._risen = True
        self._shift: str | None = None
        self._plateau: str | None = None

    @property
    def shift(self) -> str | None:
        """Why the last update is the first above the last plateau, or None."""
        return self._shift

    @property
    def plateau(self) -> str | None:
        """Why the last update is the first low and steady one of its segment, or None."""
        return self._plateau

    def update(self, loss: float) -> None:
        """Take the mean loss of one batch. Refuses NaN and infinity with ValueError and is as before."""
        if not math.isfinite(loss):
            raise ValueError(f"a detector takes finite losses, got {loss}")
        self._shift = self._plateau = None
        self._losses = [*self._losses, float(loss)][-self._window :]
        if len(self._losses) == self._window:
            self._judge(float(np.mean(self._losses)), float(np.var(self._losses)))

    def _judge(self, mean: float, variance: float) -> None:
        if not self._risen and self._settled is not None:
            limit = self._settled[0] + math.sqrt(self._settled[1])
            if mean > limit:
                self._risen = True
                self._shift = f"mean loss {mean:.4g} above {limit:.4g}, the last plateau and its deviation"
        if self._risen and mean < self._mean_threshold and variance < self._variance_threshold:
            self._risen = False
            self._settled = [mean, variance]
            self._plateau = (
                f"mean loss {mean:.4g} below {self._mean_threshold:g} and "
                f"variance {variance:.3g} below {self._variance_threshold:g}"
            )

    def state_dict(self) -> State:
        """The window, the last plateau, and what the last update said."""
        return {
            "losses": list(self._losses),
            "settled": None if self._settled is None else list(self._settled),
            "risen": self._risen,
            "shift": self._shift,
            "plateau": self._plateau,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the detector that returned `state`, made with the same arguments."""
        self._losses = [float(loss) for loss in state["losses"]]
        self._settled = None if state["settled"] is None else [float(v) for v in state["settled"]]
        self._risen = bool(state["risen"])
        self._shift = state["shift"]
        self._plateau = state["plateau"]
