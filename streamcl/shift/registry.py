"""Shift detectors: from the loss of a stream to the moments at which it shifted and settled."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from streamcl.errors import ConfigError
from streamcl.protocols import ShiftDetector

_BUILT_IN = {
    "relative": "streamcl.shift.relative:RelativeDetector",
    "plateau": "streamcl.shift.plateau:PlateauDetector",
    "river": "streamcl.shift.river:RiverDetector",
    "none": "streamcl.shift.none:SilentDetector",
}
_GROUP = "streamcl.detectors"


def detector_names() -> tuple[str, ...]:
    """The detectors that can be built by name: the built-in ones, then those of installed plugins."""
    plugins = sorted(point.name for point in entry_points(group=_GROUP) if point.name not in _BUILT_IN)
    return (*_BUILT_IN, *plugins)


def build_detector(name: str, /, **args: Any) -> ShiftDetector:
    """A detector by name with its constructor's arguments. ConfigError names the nearest valid name."""
    make = _find(name)
    parameters = inspect.signature(make).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [] if open_ended else [key for key in args if key not in parameters]
    if unknown:
        raise ConfigError(
            f"detector {name!r} has no argument {unknown[0]!r}", hint=_nearest(unknown[0], tuple(parameters))
        )
    try:
        return make(**args)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"detector {name!r} cannot be made: {error}") from error


def _find(name: str) -> Callable[..., ShiftDetector]:
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        found: Callable[..., ShiftDetector] = getattr(import_module(module), attribute)
        return found
    for point in entry_points(group=_GROUP):
        if point.name == name:
            loaded: Callable[..., ShiftDetector] = point.load()
            return loaded
    raise ConfigError(f"there is no detector {name!r}", hint=_nearest(name, detector_names()))


def _nearest(name: str, known: tuple[str, ...]) -> str:
    if not known:
        return "it takes no arguments"
    return f"did you mean {difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]}?"
