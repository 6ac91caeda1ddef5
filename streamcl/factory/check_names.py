"""Checks what a configuration names (callables, arguments, models, weights) without running anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from streamcl.config.options.learner import learner_factory
from streamcl.config.options.run import RunConfig
from streamcl.config.options.variants import ClassOptions, PluginOptions
from streamcl.errors import ConfigError, SourceError, StreamclError
from streamcl.nn.timm_compat import import_timm, refuse_unknown
from streamcl.registry import DETECTORS, SINKS, SOURCES, bind_arguments, check_arguments, import_callable
from streams.build import RUN_ARGUMENTS
from streams.download.fetch import fetched_path


def check_names(config: RunConfig) -> None:
    """Raise ConfigError with every name, argument and local path of the configuration that does not exist.

    The modules of the user's own parts are imported; no part is made.
    """
    problems = [problem for place, check in _checks(config) if (problem := _problem(config, place, check))]
    if problems:
        raise ConfigError(problems[0], problems=tuple(problems))


def _checks(config: RunConfig) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "source", lambda: _check_source(config)
    yield "learner", lambda: learner_factory(config.learner)
    yield "shift", lambda: _check_shift(config)
    for number, sink in enumerate(config.sinks):
        if isinstance(sink, ClassOptions):
            yield f"sinks.{number}", lambda path=sink.class_: import_callable(path)  # type: ignore[misc]
        elif isinstance(sink, PluginOptions):
            yield f"sinks.{number}", lambda name=sink.plugin: SINKS.find(name)  # type: ignore[misc]
    yield "backbone.name", lambda: refuse_unknown(import_timm(), config.backbone.name)
    yield "backbone.weights", lambda: _check_weights(config.backbone.weights)


def _problem(config: RunConfig, place: str, check: Callable[[], object]) -> str | None:
    """Return what is wrong at a place of the configuration, with the nearest name; None where nothing is."""
    try:
        check()
    except StreamclError as error:
        hint = f"; {error.hint}" if error.hint else ""
        return config.refuse(place, f"{error}{hint}").problems[0]
    return None


def _check_source(config: RunConfig) -> None:
    options = config.source
    if options.class_ is not None:
        bind_arguments(options.class_, options.args)
        return
    name = str(options.name)
    offered = dict.fromkeys(RUN_ARGUMENTS)
    check_arguments(SOURCES.find(name), f"source {name!r}", options.args, offered=offered)


def _check_shift(config: RunConfig) -> None:
    options = config.shift
    if isinstance(options, ClassOptions):
        bind_arguments(options.class_, options.args)
    elif isinstance(options, PluginOptions):
        label = f"detector {options.plugin!r}"
        check_arguments(DETECTORS.find(options.plugin), label, options.args, offered={})


def _check_weights(weights: str) -> None:
    """Raise where weights on this machine are named that are not there, or unknown ones are to be fetched."""
    kind, colon, rest = weights.partition(":")
    if kind == "fetch" and colon:
        with suppress(SourceError):  # not fetched yet, which a run does itself
            fetched_path(rest)
    elif weights not in {"pretrained", "none"} and kind != "hf-hub":
        path = Path(rest if colon and kind in {"file", "local-dir"} else weights)
        if not path.exists():
            raise ConfigError(f"{path} does not exist")
