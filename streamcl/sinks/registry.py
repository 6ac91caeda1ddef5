"""Where a run's records go: the run directory's JSON Lines always, services and plug-ins by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any

from streamcl.errors import ConfigError
from streamcl.protocols import Sink, State
from streamcl.sinks.best_effort import BestEffortSink
from streamcl.sinks.jsonl import TOPICS, JsonlSink
from streamcl.sinks.mlflow import MLflowSink
from streamcl.sinks.tensorboard import TensorBoardSink

__all__ = [
    "TOPICS",
    "BestEffortSink",
    "Fanout",
    "JsonlSink",
    "MLflowSink",
    "TensorBoardSink",
    "build_sinks",
    "known_sinks",
]

GROUP = "streamcl.sinks"
"""Entry points of this group are callables (run folder, **arguments) -> Sink."""


class Fanout:
    """Gives every record to several named sinks, in order. Positions go by name: a sink may come or go."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self.sinks = dict(sinks)

    def write(self, topic: str, record: Mapping[str, Any]) -> None:
        """Write to each."""
        for sink in self.sinks.values():
            sink.write(topic, record)

    def flush(self) -> None:
        """Flush each."""
        for sink in self.sinks.values():
            sink.flush()

    def close(self) -> None:
        """Close each, the others too where one fails; the first error is raised afterwards."""
        errors: list[Exception] = []
        for sink in self.sinks.values():
            try:
                sink.close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def state_dict(self) -> State:
        """Each sink's position, by name."""
        return {name: sink.state_dict() for name, sink in self.sinks.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring back each sink that `state` knows."""
        for name, sink in self.sinks.items():
            sink.load_state_dict(state.get(name, {}))


def build_sinks(
    folder: Path,
    extras: Mapping[str, Mapping[str, Any]] | None = None,
    own: Mapping[str, Callable[..., Sink]] = MappingProxyType({}),
) -> Fanout:
    """The sinks of a run: "jsonl" in `folder`, and each one named in `extras`, made with its arguments.

    `own` are makers beside the known ones, called as they are: (run folder, **arguments).
    Everything but the JSON Lines is wrapped in Lossy. Raises ConfigError for a name that is not known or
    arguments that do not fit, MissingExtra where a package is not installed.
    """
    named = (extras or {}).items()
    known = {**known_sinks(), **own}
    copies = {name: BestEffortSink(_make(name, known, folder, arguments), name) for name, arguments in named}
    return Fanout({"jsonl": JsonlSink(folder), **copies})


def known_sinks() -> dict[str, Callable[..., Sink]]:
    """What can be named: the optional sinks shipped here and those of installed plug-ins."""
    plugins = {point.name: _plugin(point) for point in entry_points(group=GROUP)}
    return {**plugins, "tensorboard": _tensorboard, "mlflow": _mlflow}


def _tensorboard(folder: Path) -> Sink:
    return TensorBoardSink(folder / "tensorboard")


def _mlflow(folder: Path, uri: str | None = None, experiment: str = "streamcl") -> Sink:
    return MLflowSink(tracking_uri=uri, experiment=experiment, run_name=folder.name)


def _plugin(point: Any) -> Callable[..., Sink]:
    def make(folder: Path, **arguments: Any) -> Sink:
        sink: Sink = point.load()(folder, **arguments)
        return sink

    return make


def _make(
    name: str, known: Mapping[str, Callable[..., Sink]], folder: Path, arguments: Mapping[str, Any]
) -> Sink:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
        raise ConfigError(f"there is no sink {name!r}", hint=hint)
    try:
        return known[name](folder, **arguments)
    except TypeError as error:
        raise ConfigError(f"sink {name}: {error}", hint="check its arguments") from error
