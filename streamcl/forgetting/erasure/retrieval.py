"""Retrieves samples for an erasure: those of the request, and learned or coming ones to retain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing

from streamcl.errors import ForgettingError
from streamcl.events import Batch, Event, ForgetRequest, Pixels, Sample
from streamcl.forgetting.erasure.held_out_store import HeldOutStore
from streamcl.forgetting.lineage.lineage import Lineage
from streamcl.forgetting.lineage.lineage_row import LineageRow
from streamcl.protocols import Fetch, Peekable, Source, fetch_of


class Retrieval:
    """Finds samples by their lineage rows, and checks that each has the pixels that were learned.

    content: the lineage's keyed hash of an image.
    """

    def __init__(self, request: ForgetRequest, source: Source, content: Callable[[Pixels], bytes]) -> None:
        self._carried = request.samples
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

        Of several with the same id, each row gets the one that was learned there. Raise ForgettingError
        where one is gone, or there are only others than were learned.
        """
        found = LearnedSamples(rows, self._content)
        found.add(self._carried)
        if self._fetch is not None:
            found.fetch(self._fetch)
        gone = sum(row.id not in found.ids for row in rows)
        if gone:
            raise ForgettingError(
                f"{gone} of {len(rows)} samples cannot be fetched again to compute their statistics",
                hint="include them in the request",
            )
        if changed := sum(row not in found for row in rows):
            raise ForgettingError(
                f"{changed} of {len(rows)} samples have other pixels than when they were learned",
                hint="include them in the request as they were",
            )
        return [found[row] for row in rows]


class LearnedSamples:
    """The samples of some lineage rows, recognised by their ids and the hashes of their pixels.

    ids: of the samples that were looked at, and are of a row's id.
    """

    def __init__(self, rows: Sequence[LineageRow], content: Callable[[Pixels], bytes]) -> None:
        self._content = content
        self._names = {row.id for row in rows}
        self._missing = {(row.id, row.content) for row in rows}
        self._found = dict[tuple[str, bytes], Sample]()
        self.ids = set[str]()

    def add(self, samples: Iterable[Sample]) -> None:
        """Look at samples, as many as it takes until none is missing."""
        for sample in samples if self._missing else ():
            if sample.id not in self._names:
                continue
            self.ids.add(sample.id)
            if (key := (sample.id, self._content(sample.image))) in self._missing:
                self._missing.remove(key)
                self._found[key] = sample
                if not self._missing:
                    return

    def fetch(self, fetch: Fetch) -> None:
        """Look at what the source has of the ids of which a sample is missing."""
        if names := list(dict.fromkeys(name for name, _ in self._missing)):
            with closing(fetch(names)) as samples:
                self.add(samples)

    def __contains__(self, row: LineageRow) -> bool:
        return (row.id, row.content) in self._found

    def __getitem__(self, row: LineageRow) -> Sample:
        """Return the sample of a row, with the label that it was learned with."""
        return labelled(self._found[row.id, row.content], row.label)


def labelled(sample: Sample, label: str | None) -> Sample:
    """Return the sample with this label: the source may have corrected it since it was learned."""
    if sample.label == label:
        return sample
    return Sample(sample.id, sample.image, label, sample.subject, sample.domain, sample.privacy)


def retain_source(
    source: Source,
    lineage: Lineage,
    filter_batch: Callable[[Batch], Batch],
    held_out: HeldOutStore | None = None,
) -> Callable[[int], Sequence[Sample]] | None:
    """Return what gives a repair at most so many samples to retain; None where the source cannot.

    A source that fetches by id gives learned samples, with the labels they were learned with, spread over the
    whole stream. Otherwise the next batches are read ahead of learning; their labels are never learned from.
    Either way nothing is stored, and the same samples come again when the erasure is repeated after a crash.

    filter_batch: removes samples that have a tombstone from a batch. held_out: those that are never learned,
    which are not given.
    """
    if (fetch := fetch_of(source)) is not None:
        return lambda limit: _fetched(fetch, lineage.subsample(limit), lineage.content)
    if isinstance(source, Peekable):
        return lambda limit: _coming(source.peek(limit), filter_batch, held_out)[:limit]
    return None


def _fetched(fetch: Fetch, rows: Sequence[LineageRow], content: Callable[[Pixels], bytes]) -> list[Sample]:
    """Return those that still exist as they were learned, with the labels they were learned with."""
    found = LearnedSamples(rows, content)
    found.fetch(fetch)
    return [found[row] for row in rows if row in found]


def _coming(
    events: Sequence[Event], filter_batch: Callable[[Batch], Batch], held_out: HeldOutStore | None
) -> list[Sample]:
    coming = [
        sample for event in events if isinstance(event, Batch) for sample in filter_batch(event).samples
    ]
    return [each for each in coming if held_out is None or not held_out.may_hold_out(each)]
