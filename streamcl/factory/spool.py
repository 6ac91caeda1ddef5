"""Builds the spool in front of a run's live source."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamcl.config.options.run import RunConfig
from streamcl.config.options.spool import SpoolOptions
from streamcl.sources.live_reader import LiveReader
from streams.live.spool.push import PushProducer
from streams.live.spool.spool import Retention, Spool
from streams.live.spool.spool_producers import IterableProducer, ReaderProducer
from streams.live.spool.spool_reader import SpoolReader
from streams.live.spool.spool_record import SpoolFormat
from streams.live.spool.spool_writer import SpoolProducer
from streams.live.with_inbox import InboxReader
from streams.user.metadata import label_names
from streams.user.records import RecordPolicy
from streams.user.retrying import RetryingReader

INBOX = "inbox"
"""The folder in the run directory of labels that people send."""


def with_spool(
    config: RunConfig, made: LiveReader | SpoolProducer, policy: RecordPolicy, folder: Path | None
) -> LiveReader:
    """Return the reader of the spool that `made` fills; a live reader without a spool unchanged.

    Raise ConfigError where the run would never empty the spool.
    """
    options = config.source.spool
    if isinstance(made, LiveReader) and options is None:
        return made
    form = SpoolFormat(policy, config.source.columns)
    producer = ReaderProducer(made, form) if isinstance(made, LiveReader) else made
    options = options or SpoolOptions()
    _check_emptied(config, producer.name)
    if folder is None:
        raise config.refuse("source.spool", "it is read by its run alone, in the run's directory")
    retention = Retention(keep=options.keep, max_bytes=options.max_bytes)
    spool = Spool(folder / options.path, retention)
    return SpoolReader(spool, producer, form, recent_ids=options.recent_ids)


def with_inbox(reader: LiveReader, policy: RecordPolicy, folder: Path | None) -> LiveReader:
    """Return the reader with the run's inbox of labels beside it, where the run directory has one.

    `streamcl serve` makes it; whoever goes on with the run reads it.
    """
    if folder is None or not (folder / INBOX).is_dir():
        return reader
    producer = PushProducer(f"{reader.name}'s inbox", records=False)
    return InboxReader(
        reader, SpoolReader(Spool(folder / INBOX), producer, SpoolFormat(policy), recent_ids=0)
    )


def spooled_iterable(
    config: RunConfig, make: Callable[[], Any], name: str, policy: RecordPolicy
) -> IterableProducer:
    """Return the producer of a user's iterable, which `make` returns anew at each call."""
    options = config.source
    reader = RetryingReader(
        make,
        name,
        deterministic=options.deterministic,
        retries=options.policy.retries,
        backoff=options.policy.retry_delay,
        sleep=time.sleep,
    )
    names = label_names(reader.made, options.columns)
    return IterableProducer(reader, name, SpoolFormat(policy, options.columns, names))


def _check_emptied(config: RunConfig, name: str) -> None:
    """Raise ConfigError where no checkpoint lets the spool drop records while the source waits for room."""
    if config.checkpoint is None:
        raise config.refuse("checkpoint", f"the spool of {name} is emptied behind checkpoints; keep some")
    if config.checkpoint.every_seconds is None:
        raise config.refuse(
            "checkpoint.every_seconds", f"the spool of {name} may be full before the next checkpoint is due"
        )
