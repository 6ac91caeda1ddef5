"""Builds the source of a run: a registered one or the user's own, checked, limited and read ahead."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from typing import TypeAlias

from streamcl.config.options.run import RunConfig
from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from streamcl.protocols import Shardable, Sliceable, Source, SourceWrapper
from streamcl.registry import bind_arguments
from streamcl.storage.rng_state import capture_generators, restore_generators
from streams.build import named_source
from streams.distributed.replicated import Replicated
from streams.distributed.sharded import Sharded, shard_size
from streams.offsets import OffsetChecked, Take
from streams.prefetch import Prefetcher
from streams.user.records import RecordPolicy
from streams.user.resume_check import ResumeCheck
from streams.user.scenario_dataset import scenario_dataset
from streams.user.source import IterableSource

SourceFactory: TypeAlias = Callable[[RunConfig, ProcessGroup, Callable[[], None]], SourceWrapper]
"""A function that returns a run's source, as `build_source` does."""


def build_source(
    config: RunConfig, group: ProcessGroup = SINGLE_PROCESS, on_stop: Callable[[], None] = lambda: None
) -> SourceWrapper:
    """Return the run's stream: offsets checked, limited, and read ahead with a stall timeout.

    Where several ranks read it, `on_stop` is called on each of them once one has been interrupted.
    """
    # Taken in any case, since a limit may be added or removed between two processes of a run.
    limit = sys.maxsize if config.max_samples is None else config.max_samples
    plain = _plain_source(config)
    if group.world_size == 1:
        return _prefetcher(config, Take(OffsetChecked(_resume_checked(config, plain)), limit))
    if (whole := _shardable(config, plain)) is not None:
        shard = whole.shard(group.rank, group.world_size, shard_size(config.batch_size, group))
        return Take(Sharded(_prefetcher(config, OffsetChecked(shard)), plain, group, on_stop), limit)
    if isinstance(plain, Sliceable):  # otherwise each rank decodes everything
        plain.read_slice(group.rank, group.world_size)
    return Take(Replicated(_prefetcher(config, OffsetChecked(plain)), group, on_stop), limit)


def _prefetcher(config: RunConfig, source: Source) -> Prefetcher:
    # A source of the user's own may draw from the process-wide generators; those here have their own.
    rng_state = capture_generators if config.source.class_ else dict
    return Prefetcher(
        source, config.source.prefetch, config.source.policy.stall_timeout, capture_rng=rng_state
    )


def _resume_checked(config: RunConfig, plain: Source) -> Source:
    """Return the source; one of a user's iterable is checked to continue where it stopped."""
    if not isinstance(plain, IterableSource) or config.source.class_ is None or plain.is_indexed:
        return plain
    checkpoint = config.checkpoint
    return ResumeCheck(
        plain,
        lambda: _plain_source(config),
        required=checkpoint is not None and checkpoint.delivery == "exactly_once",
        capture_rng=capture_generators,
        restore_rng=restore_generators,
    )


def _shardable(config: RunConfig, plain: Source) -> Shardable | None:
    """Return the source where each rank reads a shard, as configured or of a user's own; else None."""
    whole = plain if isinstance(plain, Shardable) and plain.has_shards else None
    if config.distributed.data == "auto":
        return whole if config.source.class_ is not None else None
    if config.distributed.data == "sharded" and whole is None:
        raise config.refuse(
            "distributed.data", "this source has no shard(rank, world) that returns a part of it"
        )
    return whole if config.distributed.data == "sharded" else None


def _plain_source(config: RunConfig) -> Source:
    options, policy = config.source, config.source.policy
    scenario = None
    if config.scenario is not None:
        scenario = config.scenario.name, config.scenario.model_dump(exclude={"name"}, exclude_none=True)
    if options.name is not None:
        return named_source(
            options.name,
            options.args,
            scenario,
            batch_size=config.batch_size,
            seed=config.seed,
            policy=_record_policy(config),
        )
    path = str(options.class_)
    if scenario is None:
        return IterableSource.of(
            path,
            options.args,
            batch_size=config.batch_size,
            policy=_record_policy(config),
            columns=options.columns,
            deterministic=options.deterministic,
            retries=policy.retries,
            backoff=policy.retry_delay,
        )
    return scenario_dataset(
        bind_arguments(path, options.args),
        scenario,
        name=path.rpartition(":")[2],
        batch_size=config.batch_size,
        seed=config.seed,
        policy=_record_policy(config),
        columns=options.columns,
    )


def _record_policy(config: RunConfig) -> RecordPolicy:
    policy = config.source.policy
    return RecordPolicy(**{each.name: getattr(policy, each.name) for each in fields(RecordPolicy)})
