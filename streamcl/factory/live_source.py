"""Builds live sources: how they are cut into batches, where that is logged, and how ranks divide them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

from streamcl.config.options.batch import DEFAULT_WAIT
from streamcl.config.options.run import RunConfig
from streamcl.distributed.process_group import ProcessGroup
from streamcl.factory.spool import with_inbox, with_spool
from streamcl.protocols import Source
from streamcl.sources.live_reader import LiveReader, ShardableReader
from streams.distributed.live_sharded import SINGLE_LOG, LiveShard, LiveTake, ProcessLogs, Rejoined
from streams.distributed.sharded import shard_size
from streams.live.arrival_log import ArrivalLog
from streams.live.cutting import Cutting
from streams.live.source import LiveSource
from streams.live.spool.push import PushProducer
from streams.live.spool.spool_writer import SpoolProducer
from streams.offsets import OffsetChecked, Take
from streams.user.records import RecordPolicy


def record_policy(config: RunConfig) -> RecordPolicy:
    """Return the limits of records, and what is done with bad ones."""
    policy = config.source.policy
    return RecordPolicy(**{each.name: getattr(policy, each.name) for each in fields(RecordPolicy)})


def live_source_factory(
    config: RunConfig, folder: Path | None, group: ProcessGroup
) -> Callable[[LiveReader | SpoolProducer], LiveSource]:
    """Return the function that makes a source of a live reader, which one process reads, or of a producer."""
    log = None
    if folder is not None and config.checkpoint is not None and group.world_size == 1:
        log = ArrivalLog(folder / SINGLE_LOG)

    def make(made: LiveReader | SpoolProducer) -> LiveSource:
        reader = with_spool(config, made, record_policy(config), folder)
        columns = config.source.columns if reader is made else None  # a spool has standard names
        if group.world_size == 1 and not isinstance(made, PushProducer):
            reader = with_inbox(reader, record_policy(config), folder)
        return LiveSource(
            reader,
            cutting=replace(_cutting(config, config.batch.largest), adaptive=config.batch.size is None),
            policy=record_policy(config),
            columns=columns,
            log=log,
        )

    return make


def check_live(config: RunConfig, source: Source, group: ProcessGroup) -> None:
    """Raise ConfigError where an option does not fit a source that is live, or is not."""
    if not isinstance(source, LiveSource):
        if config.batch.predict_at == "arrival":
            raise config.refuse("batch.predict_at", "only a live source shows records before their batch")
        if config.source.spool is not None:
            raise config.refuse("source.spool", "only for live sources and a class of yours without scenario")
        if config.overload.name != "wait":
            raise config.refuse("overload", "only a live source can bring more than is learned; others wait")
        return
    if group.world_size == 1:
        return
    if not isinstance(source.reader, ShardableReader):
        raise config.refuse(
            "source",
            f"{source.info.name} cannot be divided among ranks; start one process without torchrun, or give "
            "the reader shard(rank, world) and merge(positions)",
        )
    if config.distributed.data == "replicated":
        raise config.refuse("distributed.data", "several ranks read a live source in shards")
    if config.batch.predict_at == "arrival":
        raise config.refuse("batch.predict_at", "several ranks predict a record with its batch")
    if config.overload.name != "wait":
        raise config.refuse("overload", "several ranks learn all that comes")


def checked_live_source(live: Source) -> Source:
    """Return the source of one process, its offsets checked; it also continues what ranks have left."""
    checked = OffsetChecked(live)
    if not isinstance(live, LiveSource) or not isinstance(live.reader, ShardableReader):
        return checked
    logs = None if live.log is None else ProcessLogs(live.log, None)
    return Rejoined(checked, live.reader.merge, logs)


def take(plain: Source, source: Source, limit: int, group: ProcessGroup) -> Take:
    """Return the first records of a stream. plain: the source in it, before it was checked or divided."""
    if isinstance(plain, LiveSource) and isinstance(plain.reader, ShardableReader):
        return LiveTake(source, limit, group.world_size)
    return Take(source, limit)


def live_shard(
    config: RunConfig, undivided: LiveSource, group: ProcessGroup, folder: Path | None
) -> LiveShard:
    """Return the shard of one rank among several."""
    assert isinstance(undivided.reader, ShardableReader)  # see check_live
    logs = None
    if folder is not None and config.checkpoint is not None:
        logs = ProcessLogs.of_rank(folder, group.rank)
    source = LiveSource(
        undivided.reader.shard(group.rank, group.world_size),
        cutting=_cutting(config, shard_size(config.batch.largest, group)),
        policy=record_policy(config),
        columns=config.source.columns,
        log=None if logs is None else logs.batches,
    )
    return LiveShard(source, undivided.reader.merge, logs)


def _cutting(config: RunConfig, size: int) -> Cutting:
    overload = config.overload
    wait = DEFAULT_WAIT if config.batch.max_wait == "auto" else config.batch.max_wait
    return Cutting(
        size=size,
        max_wait=wait,
        previews=config.batch.predict_at == "arrival",
        overload=None if overload.name == "wait" else overload.above,
        learn_one_in=overload.learn_one_in if overload.name == "sample" else 0,
    )
