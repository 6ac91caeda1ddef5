"""Makes a shift detector by name."""

from __future__ import annotations

from typing import Any

from streamcl.protocols import ShiftDetector
from streamcl.registry import DETECTORS


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
