"""Makes the sinks of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamcl.config.options.run import RunConfig
from streamcl.config.options.variants import ClassOptions, PluginOptions
from streamcl.registry import import_callable
from streamcl.sinks.fanout import Fanout, build_sinks


def build_fanout(config: RunConfig, folder: Path) -> Fanout:
    """The logs in the run's folder and the sinks beside them, the user's own by their dotted paths."""
    own = {
        sink.class_: import_callable(sink.class_) for sink in config.sinks if isinstance(sink, ClassOptions)
    }
    return build_sinks(folder, _arguments(config), own)


def _arguments(config: RunConfig) -> dict[str, dict[str, Any]]:
    """What each sink is made with, by its name."""
    found: dict[str, dict[str, Any]] = {}
    for sink in config.sinks:
        if isinstance(sink, ClassOptions):
            found[sink.class_] = dict(sink.args)
        elif isinstance(sink, PluginOptions):
            found[sink.plugin] = dict(sink.args)
        else:
            found[sink.name] = sink.model_dump(exclude={"name"}, exclude_none=True)
    return found
