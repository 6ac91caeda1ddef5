"""A run's stream told again without some of its labels, so that a learner never learns those samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from streamcl.audit.scope import placed
from streamcl.events import Batch, Event, ForgetRequest
from streamcl.protocols import Source, SourceWrapper


class Retold(SourceWrapper):
    """A source whose samples are labelled anew, with one request to forget at its place, or none.

    label: what the sample at an offset is learned as; None where it is not to be learned, though the learner
    still sees it pass, as any image without a label. The source's own requests are left out. Ends at `end`.
    on_request: called before the request is handed out.
    """

    def __init__(
        self,
        source: Source,
        label: Callable[[int], str | None],
        end: int,
        request: ForgetRequest | None = None,
        on_request: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(source)
        self._label, self._end, self._request = label, end, request
        self._on_request = on_request

    def __iter__(self) -> Iterator[Event]:
        waiting = self._request
        for event in self._source:
            if not isinstance(event, Batch):
                continue
            if waiting is not None and event.offset >= waiting.offset:
                self._on_request()
                yield waiting
                waiting = None
            if event.offset >= self._end:
                break
            samples = [replace(each, label=self._label(offset)) for offset, each in placed(event)]
            yield replace(event, samples=tuple(samples))
        if waiting is not None:
            self._on_request()
            yield waiting
