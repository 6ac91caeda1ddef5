"""The base of shift detectors, the one that reports nothing, and detectors by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from streamcl.protocols import ShiftDetector, State
from streamcl.registry import DETECTORS


class LossDetector:
    """Base of detectors; a subclass overrides `_update`, and the state.

    shift: why the last update shows that the distribution has changed, or None. plateau: why the last update
    is where the learner should consolidate, or None.
    """

    shift: str | None = None
    plateau: str | None = None

    def update(self, loss: float) -> None:
        """Take the mean loss of one batch, in nats.

        Raises:
            ValueError: the loss is NaN or infinite; the detector is as before. River's would be silent for
                ever after.
        """
        if not math.isfinite(loss):
            raise ValueError(f"a detector takes finite losses, got {loss}")
        self.shift = self.plateau = None
        self._update(float(loss))

    def _update(self, loss: float) -> None:
        """Take a finite loss, and set `shift` and `plateau` where there is something to report."""

    def state_dict(self) -> State:
        """Return what decides the next reports, and the last report."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the detector that returned `state`, made with the same arguments."""


class SilentDetector(LossDetector):
    """Reports neither shifts nor plateaus: for learners that never consolidate."""


def build_detector(name: str, /, **args: Any) -> ShiftDetector:
    """Return the detector of that name, made with its constructor's arguments.

    Raises:
        ConfigError: the name or an argument is unknown; the hint has the nearest valid one.

    >>> detector = build_detector("none")
    >>> detector.update(2.5)
    >>> detector.shift, detector.plateau
    (None, None)
    """
    detector: ShiftDetector = DETECTORS.make(name, args)
    return detector
