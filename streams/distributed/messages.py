"""What ranks that read one stream tell one another before each event, and how they come to the same end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from streamcl.errors import SourceError, StreamclError
from streamcl.events import Batch, Event, ForgetRequest, RejectedRecord, RemoteSample, Sample
from streamcl.protocols import Collective, Source

Record: TypeAlias = Sample | RejectedRecord
Kind: TypeAlias = Literal["batch", "request", "end", "error"]


@dataclass(frozen=True, slots=True)
class RankMessage:
    """What one rank has next, less its pixels.

    content: of a batch its records, of a request itself, of an error the error. position: of the source after
    it, where the others are to keep that. stop: whether this rank was asked to stop.
    """

    kind: Kind
    offset: int = 0
    content: Any = ()
    position: Any = None
    stop: bool = False


class MessageExchange:
    """Gathers the words of all ranks; errors of one are raised by all, a stop asked of one is done by all."""

    def __init__(self, group: Collective, on_stop: Callable[[], None]) -> None:
        self._group = group
        self._on_stop = on_stop
        self._asked = False

    def interrupt(self, source: Source) -> None:
        """Have all ranks stop at the next exchange, and the source wait for nothing.

        Safe in a signal handler.
        """
        self._asked = True
        if (interrupt := getattr(source, "interrupt", None)) is not None:
            interrupt()

    def messages(self, word: RankMessage) -> list[RankMessage] | None:
        """One word a rank, in their order; None where all are to stop, and what they had is put back."""
        words = self._group.all_gather_object(
            RankMessage(word.kind, word.offset, word.content, word.position, stop=self._asked)
        )
        for rank, each in enumerate(words):
            if each.kind == "error" and rank != self._group.rank:
                raise each.content
        if word.kind == "error":
            raise word.content
        if any(each.stop for each in words):
            self._on_stop()
            return None
        return words


def next_event(events: Iterator[Event]) -> Event | StreamclError | None:
    """The next event, None at the end, or the error in its place, so that the others can be told of it."""
    try:
        return next(events, None)
    except StreamclError as error:
        return error
    except Exception as error:  # a source may raise anything; every rank must hear of it
        failed = SourceError(f"the source failed: {type(error).__name__}: {error}")
        failed.__cause__ = error
        return failed


def to_message(
    event: Event | StreamclError | None, records: Callable[[Batch], Sequence[Record]]
) -> RankMessage:
    """The word for an event; `records` says which of a batch's records to tell of."""
    match event:
        case None:
            return RankMessage("end")
        case Batch():
            return RankMessage(
                "batch", event.offset, tuple(without_pixels(record) for record in records(event))
            )
        case ForgetRequest():
            return RankMessage("request", event.offset, event)
        case _:
            return RankMessage("error", content=event)


def without_pixels(record: Record) -> Record:
    """The record without pixels."""
    return record if isinstance(record, RejectedRecord) else RemoteSample.of(record, 0)


def batch_from_messages(offset: int, records: Sequence[Record]) -> Batch:
    """The records as the batch that begins at `offset`."""
    samples = tuple(record for record in records if isinstance(record, Sample))
    return Batch(offset, samples, tuple(record for record in records if isinstance(record, RejectedRecord)))
