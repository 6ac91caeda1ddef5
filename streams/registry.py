"""The named data sets and demonstration streams, and how one of them becomes a source."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any, TypeAlias

from streamcl.errors import ConfigError, StreamclError
from streamcl.protocols import Source
from streams.datasets.cifar100 import cifar100
from streams.datasets.core50 import core50
from streams.datasets.cub200 import cub200
from streams.datasets.demo import demo_digits, demo_icons
from streams.datasets.digits import digits
from streams.datasets.icons import icons
from streams.datasets.image_folder import image_folder, imagenet_r, imagenet_sketch
from streams.datasets.npz import npz
from streams.datasets.webdataset import webdataset
from streams.replay.collection import Collection
from streams.replay.replay import OnBadRecord, ReplaySource, Stream
from streams.replay.scenarios import as_is, iid, order_for
from streams.user.records import RecordPolicy

GROUP = "streamcl.sources"
Scenario: TypeAlias = tuple[str, Mapping[str, Any]]

SOURCES: Mapping[str, Callable[..., Any]] = {
    "demo_digits": demo_digits,
    "demo_icons": demo_icons,
    "digits": digits,
    "icons": icons,
    "npz": npz,
    "image_folder": image_folder,
    "core50": core50,
    "cifar100": cifar100,
    "imagenet_r": imagenet_r,
    "imagenet_sketch": imagenet_sketch,
    "cub200": cub200,
    "webdataset": webdataset,
}


def source_names() -> tuple[str, ...]:
    """The built-in names, then those of installed plugins (entry points of the group streamcl.sources)."""
    plugins = sorted(point.name for point in entry_points(group=GROUP))
    return tuple(dict.fromkeys((*SOURCES, *plugins)))


def build_source(
    name: str,
    args: Mapping[str, Any] | None = None,
    scenario: Scenario | None = None,
    *,
    batch_size: int = 64,
    seed: int = 0,
    on_bad_record: OnBadRecord = "quarantine",
    policy: RecordPolicy | None = None,
) -> Source:
    """The named data set as a source.

    A data set's callable takes `args`, and of seed, batch_size and policy those that it has a parameter for
    and that args do not give. It returns a Stream (its order made), a pair (train, test), one Collection, or
    a Source of its own. `scenario` is (name, args) and orders the first three; without one a Stream keeps
    its order, a collection with domains streams as it lies, any other is shuffled. `policy`, where given,
    says what images may cost and decides about bad records in place of `on_bad_record`. Raises ConfigError
    for unknown names and arguments, with the nearest.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected 1 or more")
    rules = policy or RecordPolicy(on_bad_record=on_bad_record)
    made = _call(name, dict(args or {}), {"seed": seed, "batch_size": batch_size, "policy": rules})
    if not isinstance(made, Stream | Collection | tuple):
        return _own_source(name, made, scenario)
    stream = made if isinstance(made, Stream) else _stream(name, made, scenario, seed)
    order = stream.order if scenario is None else order_for(scenario[0], stream.train, scenario[1], seed)
    train = replace(stream.train, limits=rules.limits)
    test = replace(stream.test, limits=rules.limits) if stream.test is not None else None
    return ReplaySource(train, order, batch_size, test, rules.on_bad_record)


def _stream(name: str, made: Any, scenario: Scenario | None, seed: int) -> Stream:
    train, test = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(train, Collection) or not isinstance(test, Collection | None):
        raise ConfigError(f"the source {name!r} returned a {_kind(made)}", hint=_EXPECTED)
    if scenario is None and train.domains is None:
        return Stream(train, iid(train, seed), test)
    return Stream(train, as_is(train), test)


def _own_source(name: str, made: Any, scenario: Scenario | None) -> Source:
    if not isinstance(made, Source):
        raise ConfigError(f"the source {name!r} returned a {_kind(made)}", hint=_EXPECTED)
    if scenario is not None:
        raise ConfigError(
            f"the source {name!r} makes its own order; the scenario {scenario[0]!r} cannot be applied to it",
            hint="leave the scenario out, or let the source return collections",
        )
    return made


_EXPECTED = (
    "expected a streams.replay.replay.Stream, a pair (train, test) of Collections, a Collection, or a Source"
)


def _kind(made: Any) -> str:
    return type(made).__name__


def _call(name: str, args: dict[str, Any], offered: Mapping[str, Any]) -> Any:
    make = _find(name)
    known = inspect.signature(make).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    unknown = [key for key in args if key not in known]
    if unknown and not open_ended:
        raise ConfigError(
            f"the source {name!r} has no argument {unknown[0]!r}",
            hint=_nearest(unknown[0], list(known), "it takes"),
        )
    args = {key: value for key, value in offered.items() if key in known} | args
    required = [p.name for p in known.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    missing = [key for key in required if key not in args]
    if missing:
        raise ConfigError(f"the source {name!r} needs the argument {missing[0]!r}")
    try:
        return make(**args)
    except TypeError as error:  # a value of the wrong type
        raise ConfigError(f"the source {name!r} cannot take its arguments: {error}") from error


def _find(name: str) -> Callable[..., Any]:
    if name in SOURCES:
        return SOURCES[name]
    for point in entry_points(group=GROUP, name=name):
        try:
            found = point.load()
        except StreamclError:
            raise
        except Exception as error:  # a plugin's import may raise anything; say whose fault it is
            raise ConfigError(
                f"the plugin {point.value} of the source {name!r} does not load: {error}"
            ) from error
        if not callable(found):
            raise ConfigError(f"the plugin {point.value} of the source {name!r} is not callable")
        return found  # type: ignore[no-any-return]
    raise ConfigError(f"no source is named {name!r}", hint=_nearest(name, list(source_names()), "known"))


def _nearest(word: str, known: list[str], listed: str) -> str:
    near = get_close_matches(word, known, 1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"{listed}: {', '.join(known) or 'none'}"
