"""Builds the source of a run: a registered one or the user's own, checked, limited and read ahead."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from streamcl.config.options.base import seconds
from streamcl.config.options.batch import DEFAULT_WAIT
from streamcl.config.options.run import RunConfig
from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from streamcl.factory.live_source import (
    check_live,
    checked_live_source,
    live_shard,
    live_source_factory,
    record_policy,
    take,
)
from streamcl.factory.spool import spooled_iterable
from streamcl.protocols import Shardable, Sliceable, Source
from streamcl.registry import bind_arguments
from streamcl.sources.live_reader import LiveReader
from streamcl.sources.wrapper import SourceWrapper
from streamcl.storage.rng_state import capture_generators, restore_generators
from streams.appended import Appended
from streams.build import named_source
from streams.distributed.live_sharded import LiveSharded
from streams.distributed.replicated import Replicated
from streams.distributed.sharded import Sharded, shard_size
from streams.follow import Follow
from streams.live.iterable import IterableReader
from streams.live.source import LiveSource
from streams.live.spool.spool_writer import SpoolProducer
from streams.offsets import OffsetChecked, Take
from streams.prefetch import Prefetcher
from streams.replay.replay import ReplaySource
from streams.user.resume_check import ResumeCheck
from streams.user.retrying import user_code
from streams.user.scenario_dataset import scenario_dataset
from streams.user.source import IterableSource

SourceFactory: TypeAlias = Callable[[RunConfig, ProcessGroup, Callable[[], None], Path | None], SourceWrapper]
"""A function that returns a run's source, as `build_source` does."""

STALLED = 300.0
"""Seconds without an event after which a source that says how long it is has failed: a disk that hangs."""
IDLE = 1.0
"""Seconds without an event after which the loop does what is due by the clock."""
RANK_IDLE = 0.1
"""The same for ranks that divide a live source: they exchange every event, and wait for one that has none."""


def build_source(
    config: RunConfig,
    group: ProcessGroup = SINGLE_PROCESS,
    on_stop: Callable[[], None] = lambda: None,
    folder: Path | None = None,
    *,
    follow: bool = False,
) -> SourceWrapper:
    """Return the run's stream: offsets checked, limited, and read ahead with a stall timeout.

    Args:
        config: of the run.
        group: the ranks that read it.
        on_stop: called on each rank once one has been interrupted.
        folder: of the run; a live source logs its batches there.
        follow: the stream does not end with the source, but goes on with what is added to it.
    """
    # Taken in any case, since a limit may be added or removed between two processes of a run.
    limit = sys.maxsize if config.max_samples is None else config.max_samples
    plain = _plain_source(config, folder, group)
    check_live(config, plain, group)
    if follow:
        _check_growth(config, plain, group)
    if group.world_size == 1:
        checked = checked_live_source(_resume_checked(config, plain))
        followed = Follow(checked) if follow else checked
        return Appended(_prefetcher(config, take(plain, followed, limit, group), IDLE))
    if isinstance(plain, LiveSource):
        live = live_shard(config, plain, group, folder)
        read_ahead = _prefetcher(config, OffsetChecked(live.source), RANK_IDLE)
        return take(plain, LiveSharded(read_ahead, live, plain, group, on_stop), limit, group)
    if (whole := _shardable(config, plain)) is not None:
        shard = whole.shard(group.rank, group.world_size, shard_size(config.batch.largest, group))
        return Take(Sharded(_prefetcher(config, OffsetChecked(shard), None), plain, group, on_stop), limit)
    if isinstance(plain, Sliceable):  # otherwise each rank decodes everything
        plain.read_slice(group.rank, group.world_size)
    return Take(Replicated(_prefetcher(config, OffsetChecked(plain), None), group, on_stop), limit)


def inspectable_source(config: RunConfig, folder: Path) -> tuple[SourceWrapper, Source]:
    """Return a run's stream as one process reads it, without reading ahead, and its source."""
    plain = _plain_source(config, folder, SINGLE_PROCESS)
    checked = checked_live_source(_resume_checked(config, plain))
    return take(plain, checked, sys.maxsize, SINGLE_PROCESS), plain


def _prefetcher(config: RunConfig, source: Source, idle_after: float | None) -> Prefetcher:
    # A source of the user's own may draw from the process-wide generators; those here have their own.
    rng_state = capture_generators if config.source.class_ else dict
    stall = config.source.policy.stall_timeout
    if stall == "auto":
        stall = None if source.info.length is None else STALLED
    return Prefetcher(source, config.source.prefetch, stall, idle_after=idle_after, capture_rng=rng_state)


def _check_growth(config: RunConfig, source: Source, group: ProcessGroup) -> None:
    """Raise ConfigError where a source cannot be read on after its end."""
    if group.world_size > 1:
        raise config.refuse("source", "--follow needs one process; start one without torchrun")
    if isinstance(source, ReplaySource):
        raise config.refuse(
            "source", "a data set is ordered as a whole and cannot grow; for new files use source: folder"
        )
    if not source.replayable:
        raise config.refuse("source", "a source that is read once has nothing more after its end")


def _resume_checked(config: RunConfig, plain: Source) -> Source:
    """Return the source; one of a user's iterable is checked to continue where it stopped."""
    if not isinstance(plain, IterableSource) or config.source.class_ is None or plain.is_indexed:
        return plain
    checkpoint = config.checkpoint
    return ResumeCheck(
        plain,
        lambda: _plain_source(config, None, SINGLE_PROCESS),
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


def _plain_source(config: RunConfig, folder: Path | None, group: ProcessGroup) -> Source:
    """Return the source itself; its batches are as long as configured, or adapt to what has passed."""
    source = _chosen_source(config, folder, group)
    if config.batch.size is None and isinstance(source, ReplaySource | IterableSource):
        source.adapt_batch_size()
    return source


def _chosen_source(config: RunConfig, folder: Path | None, group: ProcessGroup) -> Source:
    options, scenario, delay = config.source, None, _label_delay(config)
    rate = None if config.scenario is None else config.scenario.rate
    if config.scenario is not None and config.scenario.name != "own_order":
        arguments = config.scenario.model_dump(exclude={"name", "delay", "rate"}, exclude_none=True)
        scenario = config.scenario.name, arguments
    if options.name is not None:
        return named_source(
            options.name,
            options.args,
            scenario,
            batch_size=config.batch.largest,
            seed=config.seed,
            policy=record_policy(config),
            live=live_source_factory(config, folder, group),
            label_delay=delay,
            rate=rate,
        )
    path = str(options.class_)
    make = bind_arguments(path, options.args)
    if scenario is None and (delay is not None or rate is not None):
        raise config.refuse(
            "scenario.rate" if delay is None else "scenario.delay",
            "a class of yours keeps its own order and labels; name a scenario for a data set",
        )
    if scenario is None:
        return _users_source(config, make, live_source_factory(config, folder, group), group)
    return scenario_dataset(
        make,
        scenario,
        name=path.rpartition(":")[2],
        batch_size=config.batch.largest,
        seed=config.seed,
        policy=record_policy(config),
        columns=options.columns,
        label_delay=delay,
        rate=rate,
    )


def _label_delay(config: RunConfig) -> int | None:
    """Return after how many records labels come; None: with them. Raise ConfigError where none can wait."""
    if config.scenario is None or (delay := config.scenario.delay) is None:
        return None
    if isinstance(delay, str):
        if config.scenario.rate is None:
            raise config.refuse(
                "scenario.delay", "a duration needs a clock: scenario: {rate: 10}, in records a second"
            )
        delay = math.ceil(seconds(delay) * config.scenario.rate)
    needed = delay + config.batch.largest
    if config.labels is None or config.labels.max_waiting < needed:
        raise config.refuse(
            "scenario.delay", f"records wait for their labels: labels: {{max_waiting: {needed}}}"
        )
    return delay


def _users_source(
    config: RunConfig,
    make: Callable[[], Any],
    live: Callable[[LiveReader | SpoolProducer], LiveSource],
    group: ProcessGroup,
) -> Source:
    """Return the source of whatever the user's callable makes: a live reader, or an iterable of records."""
    options, policy = config.source, config.source.policy
    name = str(options.class_).rpartition(":")[2]
    with user_code(f"{name} could not be made"):
        made = [make()]
    if isinstance(made[0], LiveReader | SpoolProducer):
        return live(made[0])

    def begin() -> Any:
        return made.pop() if made else make()  # a camera is not opened twice

    if options.spool is not None:
        return live(spooled_iterable(config, begin, name, record_policy(config)))
    source = IterableSource(
        begin,
        name=name,
        batch_size=config.batch.largest,
        policy=record_policy(config),
        columns=options.columns,
        deterministic=options.deterministic,
        retries=policy.retries,
        backoff=policy.retry_delay,
    )
    wait = config.batch.max_wait
    if wait == "auto":  # several ranks read the same batches, so these cannot depend on the clock
        wait = None if source.replayable or group.world_size > 1 else DEFAULT_WAIT
    if wait is None:
        return source
    source.read_singly()
    return live(IterableReader(source, config.batch.largest))
