"""Makes the stream of a run: a registered source or the user's own, ordered, limited and read ahead."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol, cast

from streamcl.config.options.run import RunConfig
from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from streamcl.protocols import Source, State
from streamcl.registry import bind_arguments
from streamcl.storage.rng_state import capture_generators
from streams.build import Scenario, named_source
from streams.distributed.replicated import Replicated
from streams.distributed.sharded import Sharded, can_be_sharded, shard_size
from streams.prefetch import OffsetChecked, Prefetcher, Take
from streams.user.records import RecordPolicy
from streams.user.scenario_dataset import scenario_dataset
from streams.user.source import IterableSource


class OpenSource(Source, Protocol):
    """A source that is read ahead (see streams.prefetch.Prefetcher)."""

    def rng_state(self) -> State:
        """The process-wide random generators after the last event handed out."""
        ...

    def interrupt(self) -> None:
        """Wait for no further event. Safe in a signal handler."""
        ...

    def close(self) -> None:
        """Stop reading."""
        ...


class MakeSource(Protocol):
    """Makes a run's source."""

    def __call__(self, config: RunConfig, group: ProcessGroup, on_stop: Callable[[], None]) -> OpenSource:
        """As `build_source` does."""
        ...


def build_source(
    config: RunConfig, group: ProcessGroup = SINGLE_PROCESS, on_stop: Callable[[], None] = lambda: None
) -> OpenSource:
    """The stream: ordered, limited, and read ahead under a watchdog.

    Where several `ranks` read it, `on_stop` is called on each of them when one has been asked to stop.
    """
    limit = sys.maxsize if config.limit is None else config.limit  # a limit may come and go between processes
    plain: Any = _plain_source(config)
    if group.world_size == 1:
        return _read_ahead(config, Take(OffsetChecked(plain), limit))
    if _in_parts(config, plain):
        part = plain.shard(group.rank, group.world_size, shard_size(config.batch_size, group))
        shared: Source = Sharded(_read_ahead(config, OffsetChecked(part)), plain, group, on_stop)
    else:
        if hasattr(plain, "read_slice"):  # else each rank decodes everything
            plain.read_slice(group.rank, group.world_size)
        shared = Replicated(_read_ahead(config, OffsetChecked(plain)), group, on_stop)
    return cast(OpenSource, Take(shared, limit))


def _read_ahead(config: RunConfig, source: Source) -> Prefetcher:
    # A source of the user's own may draw from the process-wide generators; those here have their own.
    note = capture_generators if config.source.class_ else dict
    return Prefetcher(source, config.source.prefetch, config.source.policy.stall_timeout, note=note)


def _in_parts(config: RunConfig, plain: Any) -> bool:
    """Whether each rank reads a part of its own: where that is said, or a user's own source has parts."""
    if config.ranks.read == "auto":
        return config.source.class_ is not None and can_be_sharded(plain)
    if config.ranks.read == "shards" and not can_be_sharded(plain):
        raise config.refuse("ranks.read", "this source has no shard(rank, world) by which parts are read")
    return config.ranks.read == "shards"


def _plain_source(config: RunConfig) -> Source:
    options, policy = config.source, config.source.policy
    if options.name is not None:
        return named_source(
            options.name,
            options.args,
            _scenario(config),
            batch_size=config.batch_size,
            seed=config.seed,
            on_bad_record=policy.on_bad_record,
            policy=_record_policy(config),
        )
    scenario = _scenario(config)
    if scenario is None:
        return _own_source(config)
    return scenario_dataset(
        bind_arguments(str(options.class_), options.args),
        scenario,
        name=str(options.class_).rpartition(":")[2],
        batch_size=config.batch_size,
        seed=config.seed,
        policy=_record_policy(config),
        columns=options.columns,
    )


def _own_source(config: RunConfig) -> IterableSource:
    """The user's own stream."""
    options, policy = config.source, config.source.policy
    return IterableSource.of(
        str(options.class_),
        options.args,
        batch_size=config.batch_size,
        policy=_record_policy(config),
        columns=options.columns,
        deterministic=options.deterministic,
        retries=policy.retries,
        backoff=policy.retry_delay,
    )


def _scenario(config: RunConfig) -> Scenario | None:
    if config.scenario is None:
        return None
    arguments = config.scenario.model_dump(exclude={"name"}, exclude_none=True)
    return config.scenario.name, arguments


def _record_policy(config: RunConfig) -> RecordPolicy:
    policy = config.source.policy
    names = ("on_bad_record", "missing_label", "negative_label", "max_classes")
    limits = ("max_pixels", "max_side", "max_file_bytes")
    return RecordPolicy(**{name: getattr(policy, name) for name in (*names, *limits)})
