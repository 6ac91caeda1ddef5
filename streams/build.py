"""The named data sets and demonstration streams, and how a source is built from one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from streamcl.errors import ConfigError
from streamcl.protocols import Source
from streamcl.registry import SOURCES
from streamcl.sources.live_reader import LiveReader
from streams.live.source import LiveSource
from streams.live.spool.spool_writer import SpoolProducer
from streams.replay.collection import Collection
from streams.replay.replay import ReplaySource, Stream
from streams.replay.scenarios import as_is, iid, order_for
from streams.user.records import RecordPolicy

Scenario: TypeAlias = tuple[str, Mapping[str, Any]]
RUN_ARGUMENTS = ("seed", "batch_size", "policy")
"""Arguments that a named source may take from the run."""
NO_DELAY = "its labels cannot be made to come later, nor can it be given a clock"


def live_source(made: LiveReader | SpoolProducer) -> Source:
    """Return the source of a live reader. Raise ConfigError for one that needs a spool in a run directory."""
    if isinstance(made, SpoolProducer):
        raise ConfigError(f"the source {made.name!r} needs a spool", hint="start it as a run: streamcl run")
    return LiveSource(made)


def named_source(
    name: str,
    args: Mapping[str, Any] | None = None,
    scenario: Scenario | None = None,
    *,
    batch_size: int = 64,
    seed: int = 0,
    policy: RecordPolicy | None = None,
    live: Callable[[LiveReader | SpoolProducer], Source] = live_source,
    label_delay: int | None = None,
    rate: float | None = None,
) -> Source:
    """Return the named data set as a source.

    A data set's callable takes `args`, and of seed, batch_size and policy those that it has a parameter for
    and that args do not give. It returns a Stream (its order made), a pair (train, test), one Collection, a
    Source of its own, or a LiveReader or SpoolProducer, of which `live` makes a source. `scenario` is (name,
    args) and orders the first three; without one a Stream keeps its order, a collection with domains streams
    as it lies, any other is shuffled. `policy` limits the images and decides about bad records.
    `label_delay`, `rate`: see `ReplaySource`. Raise ConfigError for unknown names and arguments, with the
    nearest.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected 1 or more")
    rules = policy or RecordPolicy()
    offered = dict(zip(RUN_ARGUMENTS, (seed, batch_size, rules), strict=True))
    made = SOURCES.make(name, args or {}, offered=offered)
    if isinstance(made, LiveReader | SpoolProducer):
        made = live(made)
    if isinstance(made, Source):
        if scenario is not None:
            raise ConfigError(
                f"the source {name!r} makes its own order, so the scenario {scenario[0]!r} cannot be applied",
                hint="leave the scenario out, or let the source return collections",
            )
        if label_delay is not None or rate is not None:
            raise ConfigError(f"the source {name!r} is no data set that is read by index, so {NO_DELAY}")
        return made
    stream = made if isinstance(made, Stream) else _stream(name, made, scenario, seed)
    order = stream.order if scenario is None else order_for(scenario[0], stream.train, scenario[1], seed)
    train = replace(stream.train, limits=rules)
    test = replace(stream.test, limits=rules) if stream.test is not None else None
    return ReplaySource(
        train, order, batch_size, test, rules.on_bad_record, label_delay=label_delay, rate=rate
    )


def _stream(name: str, made: Any, scenario: Scenario | None, seed: int) -> Stream:
    train, test = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(train, Collection) or not isinstance(test, Collection | None):
        hint = "expected a streams.replay.replay.Stream, a pair (train, test) of Collections, a Collection, "
        raise ConfigError(f"the source {name!r} returned a {type(made).__name__}", hint=f"{hint}or a Source")
    if scenario is None and train.domains is None:
        return Stream(train, iid(train, seed), test)
    return Stream(train, as_is(train), test)
