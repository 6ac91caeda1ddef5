"""River's drift detectors behind streamcl's protocol; the one module that imports `river.drift`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from river import base, drift

from streamcl.errors import ConfigError, nearest
from streamcl.protocols import State
from streamcl.registry import call_with
from streamcl.shift.detector import LossDetector

HISTORY_LIMIT = 4096  # losses; replaying them takes 1 ms for ADWIN, 5 ms for PageHinkley, 1.3 s for KSWIN
_RECENT = (
    10  # losses whose mean is compared with those before: the rise shows within ten batches or not at all
)


class RiverDetector(LossDetector):
    """Any detector of `river.drift` by name. A drift upwards is a shift, and the plateau is the same moment.

    After every drift, up or down, a fresh detector starts. Its state is the list of losses since then, which
    is replayed on loading (River's objects hold no state of their own that could be saved without pickle).
    When the list reaches 4,096 losses the detector is started afresh on the last half of it.
    A detector that draws random numbers gets seed 0 unless `args` says otherwise.
    """

    def __init__(self, name: str, args: Mapping[str, Any] | None = None) -> None:
        self._name, self._args, self._class = name, args or {}, _find(name)
        self._detector = self._made()
        self._history: list[float] = []

    def _update(self, loss: float) -> None:
        self._history.append(loss)
        self._detector.update(loss)
        if self._detector.drift_detected:
            self.shift = self.plateau = self._rise()
            self._replay([])
        elif len(self._history) >= HISTORY_LIMIT:
            self._replay(self._history[-HISTORY_LIMIT // 2 :])

    def _rise(self) -> str | None:
        recent = max(1, min(_RECENT, len(self._history) // 2))
        older, newer = self._history[:-recent], self._history[-recent:]
        if older and np.mean(newer) <= np.mean(older):
            return None
        return f"{self._name}: mean loss {np.mean(newer):.4g} after {np.mean(older or newer):.4g}"

    def _made(self) -> Any:
        return call_with(self._class, f"River detector {self._name}", self._args, offered={"seed": 0})

    def _replay(self, history: list[float]) -> None:
        self._detector, self._history = self._made(), history
        for loss in history:
            self._detector.update(loss)

    def state_dict(self) -> State:
        """Return the losses since the detector was started, and what the last update reported."""
        return {"history": np.array(self._history, np.float64), "reason": self.shift}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the detector that returned `state`, made with the same arguments."""
        self._replay([float(loss) for loss in state["history"]])
        self.shift = self.plateau = state["reason"]


def _find(name: str) -> Any:
    known = sorted(
        key
        for key in dir(drift)
        if inspect.isclass(found := getattr(drift, key)) and issubclass(found, base.DriftDetector)
    )
    if name in known:
        return getattr(drift, name)
    if hasattr(drift.binary, name):
        raise ConfigError(
            f"River's {name} takes errors (0 or 1), not losses",
            hint=f"one of {', '.join(known)} takes losses",
        )
    raise ConfigError(f"River has no drift detector {name!r}", hint=nearest(name, known, "it has"))
