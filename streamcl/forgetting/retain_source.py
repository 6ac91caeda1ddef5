"""Samples that a run gives a repair to hold on to: learned ones that its source fetches, or coming ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from streamcl.events import Batch, Event, Sample
from streamcl.forgetting.methods.protocol import LineageRow
from streamcl.forgetting.retrieval import labelled
from streamcl.protocols import Fetch, Peekable, Source, fetch_of


class LearnedRows(Protocol):
    """Remembers what was learned (see streamcl.forgetting.lineage)."""

    def subsample(self, limit: int) -> Sequence[LineageRow]:
        """At most so many traces of learned samples, spread evenly over the stream."""
        ...


def retain_source(
    source: Source, learned: LearnedRows, admit: Callable[[Batch], Batch]
) -> Callable[[int], Sequence[Sample]] | None:
    """Gives at most so many samples; None where the source can neither fetch nor look ahead.

    Samples that the source can fetch by their ids come as they were learned, spread over the whole stream.
    Otherwise the next batches are looked at before they are handed out; their labels are never learned from,
    and what has a tombstone is left out. Either way nothing is stored, and the same samples come again when
    a crash makes the erasure begin anew.
    """
    if (fetch := fetch_of(source)) is not None:
        return lambda limit: _fetched(fetch, learned.subsample(limit))
    if isinstance(source, Peekable):
        return lambda limit: _coming(source.peek(limit), admit)[:limit]
    return None


def _fetched(fetch: Fetch, traces: Sequence[LineageRow]) -> list[Sample]:
    """Those that still exist, with the labels they were learned with."""
    found = fetch([trace.id for trace in traces])
    return [labelled(found[trace.id], trace.label) for trace in traces if trace.id in found]


def _coming(events: Sequence[Event], admit: Callable[[Batch], Batch]) -> list[Sample]:
    return [sample for event in events if isinstance(event, Batch) for sample in admit(event).samples]
