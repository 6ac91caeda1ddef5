"""Retrieves samples for an erasure: those of the request, and learned or coming ones to retain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streamcl.errors import ForgettingError
from streamcl.events import Batch, Event, ForgetRequest, Pixels, Sample
from streamcl.forgetting.lineage import Lineage
from streamcl.forgetting.lineage_row import LineageRow
from streamcl.protocols import Fetch, Peekable, Source, fetch_of


class Retrieval:
    """Finds samples by their lineage rows, and checks that each has the pixels that were learned.

    content: the lineage's keyed hash of an image.
    """

    def __init__(self, request: ForgetRequest, source: Source, content: Callable[[Pixels], bytes]) -> None:
        self._carried = {sample.id: sample for sample in request.samples}
        self._fetch = fetch_of(source)
        self._content = content

    @property
    def unavailable(self) -> str | None:
        """Return why no sample can be retrieved; None where some may be."""
        if self._carried or self._fetch is not None:
            return None
        return "the request carries no samples and the source cannot fetch them by id"

    def samples(self, rows: Sequence[LineageRow]) -> list[Sample]:
        """Return the samples of the rows, in order, with the labels they were learned with.

        Raise ForgettingError where one is gone, or has other pixels than those that were learned.
        """
        missing = [row.id for row in rows if row.id not in self._carried]
        found = dict(self._fetch(missing)) if missing and self._fetch is not None else {}
        found |= self._carried
        gone = sum(row.id not in found for row in rows)
        if gone:
            raise ForgettingError(
                f"{gone} of {len(rows)} samples cannot be fetched again to compute their statistics",
                hint="include them in the request",
            )
        changed = sum(self._content(found[row.id].image) != row.content for row in rows)
        if changed:
            raise ForgettingError(
                f"{changed} of {len(rows)} samples have other pixels than when they were learned",
                hint="include them in the request as they were",
            )
        return [labelled(found[row.id], row.label) for row in rows]


def labelled(sample: Sample, label: str | None) -> Sample:
    """Return the sample with this label: the source may have corrected it since it was learned."""
    if sample.label == label:
        return sample
    return Sample(sample.id, sample.image, label, sample.subject, sample.domain, sample.privacy)


def retain_source(
    source: Source, lineage: Lineage, filter_batch: Callable[[Batch], Batch]
) -> Callable[[int], Sequence[Sample]] | None:
    """Return what gives a repair at most so many samples to retain; None where the source cannot.

    A source that fetches by id gives learned samples, with the labels they were learned with, spread over the
    whole stream. Otherwise the next batches are read ahead of learning; their labels are never learned from.
    Either way nothing is stored, and the same samples come again when the erasure is repeated after a crash.

    filter_batch: removes samples that have a tombstone from a batch.
    """
    if (fetch := fetch_of(source)) is not None:
        return lambda limit: _fetched(fetch, lineage.subsample(limit))
    if isinstance(source, Peekable):
        return lambda limit: _coming(source.peek(limit), filter_batch)[:limit]
    return None


def _fetched(fetch: Fetch, rows: Sequence[LineageRow]) -> list[Sample]:
    """Return those that still exist, with the labels they were learned with."""
    found = fetch([row.id for row in rows])
    return [labelled(found[row.id], row.label) for row in rows if row.id in found]


def _coming(events: Sequence[Event], filter_batch: Callable[[Batch], Batch]) -> list[Sample]:
    return [sample for event in events if isinstance(event, Batch) for sample in filter_batch(event).samples]
