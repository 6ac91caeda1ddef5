"""Brings back the samples of a request: those that it carries, those that the source can fetch, no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streamcl.errors import ForgettingError
from streamcl.events import ForgetRequest, Pixels, Sample
from streamcl.forgetting.methods.protocol import LineageRow
from streamcl.protocols import Source, fetch_of


class Retrieval:
    """Finds samples by their traces and makes sure that each is the very one that was learned.

    content: the lineage's salted hash of an image.
    """

    def __init__(self, request: ForgetRequest, source: Source, content: Callable[[Pixels], bytes]) -> None:
        self._carried = {sample.id: sample for sample in request.samples}
        self._fetch = fetch_of(source)
        self._content = content

    @property
    def unavailable(self) -> str | None:
        """Why nothing can be brought back; None where something may be."""
        if self._carried or self._fetch is not None:
            return None
        return "the request carries no samples and the source cannot fetch them by id"

    def samples(self, traces: Sequence[LineageRow]) -> list[Sample]:
        """The samples of the traces, in order, with the labels they were learned with.

        Raises ForgettingError where one is gone, or has other pixels than those that were learned.
        """
        missing = [trace.id for trace in traces if trace.id not in self._carried]
        found = dict(self._fetch(missing)) if missing and self._fetch is not None else {}
        found |= self._carried
        gone = sum(trace.id not in found for trace in traces)
        if gone:
            raise ForgettingError(
                f"{gone} of {len(traces)} samples cannot be had again, so their share cannot be derived",
                hint="let the request carry them",
            )
        changed = sum(self._content(found[trace.id].image) != trace.content for trace in traces)
        if changed:
            raise ForgettingError(
                f"{changed} of {len(traces)} samples are not those that were learned: their pixels differ",
                hint="let the request carry them as they were",
            )
        return [labelled(found[trace.id], trace.label) for trace in traces]


def labelled(sample: Sample, label: str | None) -> Sample:
    """The source may have corrected a label since; what was learned counts."""
    if sample.label == label:
        return sample
    return Sample(sample.id, sample.image, label, sample.subject, sample.domain, sample.privacy)
