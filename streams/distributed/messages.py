"""Exchanges messages among ranks that read one stream before each event, so that all end the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from streamcl.errors import SourceError, StreamclError, cause_of
from streamcl.events import Batch, Event, ForgetRequest, Idle, Preview, RejectedRecord
from streamcl.protocols import Collective, Source
from streamcl.sources.remote_sample import RemoteSample
from streamcl.sources.wrapper import SourceWrapper
from streams.offsets import Record

ONE_PROCESS = "labels that come after their records need a run of one process"


@dataclass(frozen=True, slots=True)
class RankMessage:
    """The next event of one rank, without its pixels.

    content: the records of a batch, the request, or the error. position: the source's state after the event,
    or whatever else the ranks compare. stop: whether this rank was interrupted.
    """

    kind: Literal["batch", "request", "idle", "end", "error"]
    offset: int = 0
    content: Any = ()
    position: Any = None
    stop: bool = False


class ExchangingSource(SourceWrapper):
    """Base of sources whose ranks exchange a message before each event.

    An error on one rank is raised on all. An interrupt of one stops all, and calls `on_stop` on each of them.
    """

    def __init__(self, source: Source, group: Collective, on_stop: Callable[[], None]) -> None:
        super().__init__(source)
        self._group, self._on_stop = group, on_stop
        self._interrupted = False

    def interrupt(self) -> None:
        """Have all ranks stop before their next event, without waiting for it. Safe in a signal handler."""
        self._interrupted = True
        super().interrupt()

    def _gather(self, message: RankMessage) -> list[RankMessage] | None:
        """Return one message a rank, in the order of ranks; None where all are to stop before the event."""
        messages = self._group.all_gather_object(replace(message, stop=self._interrupted))
        for rank, each in enumerate(messages):
            if each.kind == "error" and rank != self._group.rank:
                raise each.content
        if message.kind == "error":
            raise message.content
        if any(each.stop for each in messages):
            self._on_stop()
            return None
        return messages


def next_event(events: Iterator[Event]) -> Event | StreamclError | None:
    """Return the next event, None at the end, or the error, so that the other ranks can be sent it."""
    try:
        return next(events, None)
    except StreamclError as error:
        return error
    except (Exception, SystemExit) as error:  # a source may raise anything; every rank must raise it
        failed = SourceError(f"the source failed: {cause_of(error)}")
        failed.__cause__ = error
        return failed


def to_message(
    event: Event | StreamclError | None, records: Callable[[Batch], Sequence[Record]]
) -> RankMessage:
    """Return the message for an event; `records` selects the records of a batch that are sent."""
    match event:
        case None:
            return RankMessage("end")
        case Batch() if event.labels:
            return RankMessage("error", content=SourceError(f"{ONE_PROCESS} (offset {event.offset})"))
        case Batch():
            return RankMessage("batch", event.offset, tuple(_without_pixels(each) for each in records(event)))
        case ForgetRequest():
            return RankMessage("request", event.offset, event)
        case Idle() | Preview():
            return RankMessage("idle")
        case _:
            return RankMessage("error", content=event)


def _without_pixels(record: Record) -> Record:
    return record if isinstance(record, RejectedRecord) else RemoteSample.of(record, 0)
