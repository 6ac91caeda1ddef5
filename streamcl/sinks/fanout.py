"""Several sinks as one, and the sinks that a configuration names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from streamcl.protocols import Sink, State
from streamcl.registry import SINKS, call_with
from streamcl.sinks.best_effort import BestEffortSink
from streamcl.sinks.jsonl import JsonlSink
from streamcl.sinks.redaction import (
    MissedRedaction,
    NoteCount,
    RedactableSink,
    RedactionTarget,
    count_unnoted,
)


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

    def redact(self, target: RedactionTarget, note: NoteCount = count_unnoted) -> int:
        """Redact in each sink that can; return how many records changed. Of copies it is noted afterwards.

        Raise MissedRedaction, after all others, where copies by a sink still hold what was erased.
        """
        changed, missed = 0, list[str]()
        for name, sink in self.sinks.items():
            try:
                if isinstance(sink, JsonlSink):
                    changed += sink.redact(target, note)
                elif isinstance(sink, RedactableSink):
                    changed += note(name, sink.redact(target))
            except MissedRedaction as error:
                missed += error.sinks
        if missed:
            raise MissedRedaction(missed)
        return changed

    def state_dict(self) -> State:
        """Return each sink's position, by name."""
        return {name: sink.state_dict() for name, sink in self.sinks.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return each sink to its position in `state`, or to its beginning where it has none."""
        for name, sink in self.sinks.items():
            sink.load_state_dict(state.get(name, {}))


def build_sinks(
    folder: Path,
    extras: Mapping[str, Mapping[str, Any]] | None = None,
    own: Mapping[str, Callable[..., Sink]] = MappingProxyType({}),
) -> Fanout:
    """Return the sinks of a run: "jsonl" in `folder`, and those named in `extras` with their arguments.

    Everything but the JSON Lines is wrapped in BestEffortSink.

    Args:
        own: callables by name that are not registered; like registered ones they are called with the run
            folder and keyword arguments.

    Raises:
        ConfigError: a name is not known, or arguments do not fit.
        MissingExtra: a package is not installed.
    """
    copies = {}
    for name, args in (extras or {}).items():
        make = own[name] if name in own else SINKS.find(name)
        copies[name] = BestEffortSink(call_with(make, f"sink {name!r}", args, folder), name)
    return Fanout({"jsonl": JsonlSink(folder), **copies})
