"""A run's stream told again without some of its labels, so that a learner never learns those samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from streamcl.audit.scope import placed
from streamcl.events import Batch, Event, ForgetRequest, StreamInfo
from streamcl.protocols import Source, State


class Retold:
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
        self._source, self._label, self._end, self._request = source, label, end, request
        self._on_request = on_request

    @property
    def info(self) -> StreamInfo:
        """What the source says of itself."""
        return self._source.info

    @property
    def replayable(self) -> bool:
        """What the source promises."""
        return self._source.replayable

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

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def state_dict(self) -> State:
        """The source's position."""
        return self._source.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position of the source."""
        self._source.load_state_dict(state)
