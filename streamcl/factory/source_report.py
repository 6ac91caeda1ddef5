"""Describes where a source stands and what would come next, without taking anything from it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from streamcl.config.options.run import RunConfig
from streamcl.config.options.spool import SpoolOptions
from streamcl.errors import SourceError
from streamcl.events import Batch, ForgetRequest, PlacedEvent, RejectedRecord, Sample
from streamcl.factory.live_source import record_policy
from streamcl.factory.source import inspectable_source
from streamcl.protocols import Source
from streamcl.requests.label import Label
from streamcl.sources.appending import source_position
from streamcl.sources.delivery import guarantee_of
from streamcl.storage.segment import SEGMENT_SUFFIX
from streams.live.source import LiveSource
from streams.live.spool.spool_reader import SpoolReader
from streams.live.with_inbox import own_position
from streams.offsets import records_of
from streams.user.conversion import Conversion, Unit

SPOOL = SpoolOptions.model_fields["path"].default
"""Where the spool of a run is, in its directory."""


@dataclass(frozen=True, slots=True)
class SourceReport:
    """Where a source stands.

    live: whether it has no end. guarantee: how often each record is learned. offset: records before the
    position. remaining: records after it, as far as known; None: not known. next_record: a description of
    the record at the position. fault: why nothing can be read from there.
    """

    name: str
    live: bool
    guarantee: str
    offset: int
    remaining: int | None
    next_record: str
    fault: SourceError | None = None


def report_source(
    config: RunConfig, state: Mapping[str, Any] | None, wait: float, folder: Path
) -> SourceReport:
    """Return where a run's source stands; nothing is advanced, acknowledged or written.

    A source that is read once is not read, since the record would be lost.

    Args:
        config: of the run.
        state: the position of the source in the newest checkpoint of the run; None: the beginning.
        wait: seconds to wait for a record of a live source.
        folder: of the run; its spool is read as it is, and nothing is received into it.
    """
    options = config.source.spool or SpoolOptions()
    with _spool_copy(folder / options.path) as copy:
        if config.source.spool is not None:
            config = _with_spool_at(config, SPOOL)
        return _report(config, state, wait, copy)


def _report(config: RunConfig, state: Mapping[str, Any] | None, wait: float, folder: Path) -> SourceReport:
    stream, plain = inspectable_source(config, folder)
    if state is not None:
        state = source_position(state)
        stream.load_state_dict(state)
    live = isinstance(plain, LiveSource)
    offset = 0 if state is None else int(state["offset"])
    remaining, found, fault = None, "", None
    try:
        if isinstance(plain, LiveSource):
            if plain.replayable:
                found, remaining = _next_of_reader(config, plain, offset, wait)
        elif plain.replayable:
            found, remaining = _next_of(stream, offset)
    except SourceError as error:
        fault = error
    if not found and fault is None:
        found = "not read: the source is read once, and the record would be lost"
    return SourceReport(plain.info.name, live, str(guarantee_of(plain)), offset, remaining, found, fault)


def _next_of(stream: Source, offset: int) -> tuple[str, int | None]:
    """Return the description of a finite source's next record, and how many there are."""
    length = stream.info.length
    remaining = None if length is None else max(0, length - offset)
    event = next((each for each in stream if isinstance(each, PlacedEvent)), None)
    return ("none: the source is at its end" if event is None else _describe(event)), remaining


def _next_of_reader(config: RunConfig, plain: LiveSource, offset: int, wait: float) -> tuple[str, int | None]:
    """Return the description of the next record that a live reader brings in time, and its lag."""
    reader = plain.reader
    reader.open(own_position(plain.state_dict()["reader"]))
    try:
        for value in _values(plain, wait):
            conversion = Conversion(
                reader.name, record_policy(config), (), config.source.columns, offset=offset, seen=()
            )
            if units := conversion.units_of(value):
                return _describe(units[0]), reader.lag()
        waited = "in the spool" if isinstance(reader, SpoolReader) else f"within {wait:g} s"
        return f"none {waited}", reader.lag()
    finally:
        reader.close()


def _values(plain: LiveSource, wait: float) -> Iterator[Any]:
    """Yield what the reader brings within `wait` seconds."""
    if isinstance(plain.reader, SpoolReader):  # a poll would begin to receive
        yield from (each.value for each in plain.reader.replay([plain.reader.position()["next"]]))
        return
    until = time.monotonic() + wait
    while (left := until - time.monotonic()) > 0:
        arrivals = plain.reader.poll(min(left, 0.5))
        if arrivals is None:
            return
        yield from (arrival.value for arrival in arrivals)


def _with_spool_at(config: RunConfig, path: str) -> RunConfig:
    assert config.source.spool is not None
    spool = config.source.spool.model_copy(update={"path": path})
    return config.model_copy(update={"source": config.source.model_copy(update={"spool": spool})})


@contextmanager
def _spool_copy(original: Path) -> Iterator[Path]:
    """Yield a run directory with a spool that can be opened while a run holds the original.

    The segments are links but for the last one, the end of which an opening may cut off.
    """
    segments = sorted(original.glob(f"*{SEGMENT_SUFFIX}"))
    with TemporaryDirectory(prefix="streamcl-check-") as temporary:
        spool = Path(temporary) / SPOOL
        spool.mkdir()
        for segment in segments[:-1]:
            (spool / segment.name).symlink_to(segment.resolve())
        for segment in segments[-1:]:
            shutil.copyfile(segment, spool / segment.name)
        yield Path(temporary)


def _describe(unit: Unit) -> str:
    match unit:
        case Batch():
            return _describe(next(records_of(unit)))
        case Sample():
            height, width = unit.image.shape[:2]
            label = "no label" if unit.label is None else f"label {unit.label!r}"
            return f"{unit.id}, {label}, {width} x {height} pixels"
        case RejectedRecord():
            return f"{unit.id}, a bad record: {unit.reason}"
        case Label():
            return f"{'a label' if unit.label is not None else 'the withdrawal of a label'}, of {unit.id}"
        case ForgetRequest():
            return f"a request to forget, {unit.id}"
    return type(unit).__name__
