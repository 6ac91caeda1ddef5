"""The line on a terminal that shows how far a run has come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import Task

    from streamcl.runs.run import Run

IDLE_AFTER = 3.0
"""Seconds without a record after which a live stream is said to wait."""
UPDATE_EVERY = 16  # records


def run_with_progress(opened: Run) -> None:
    """Drive a run to its end or its stop, and show it on stderr: a bar where the end is known."""
    known = opened.length is not None
    name = TextColumn("[bold]{task.description}")
    state = LiveState()
    columns: Iterable[ProgressColumn] = (
        (name, BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"), TimeRemainingColumn())
        if known
        else (name, SpinnerColumn(), state)
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(opened.config.name, total=opened.length, figures="")
        for number, _ in enumerate(opened):
            offset = opened.processor.progress.offset
            state.note(offset)
            if number % UPDATE_EVERY == 0 or not known:  # the next record of a live stream may take hours
                bar.update(task, completed=offset, figures=opened.figures())


class LiveState(ProgressColumn):
    """How many records were read, and the figures; while none comes, since when.

    It is drawn by a thread of the bar, also while the run waits for a record.
    """

    max_refresh = 0.5

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        local_time: Callable[[float], time.struct_time] = time.localtime,
    ) -> None:
        super().__init__()
        self._clock, self._local_time = clock, local_time
        self._offset, self._began = 0, clock()
        self._last: float | None = None

    def note(self, offset: int) -> None:
        """Note that the stream has come to this offset."""
        self._offset, self._last = offset, self._clock()

    def render(self, task: Task) -> Text:
        """Return the text for this moment."""
        return Text(self.text(str(task.fields["figures"])))

    def text(self, figures: str) -> str:
        """Return the text for this moment. figures: of the run."""
        if self._clock() - (self._began if self._last is None else self._last) < IDLE_AFTER:
            return f"{self._offset:,} learned  {figures}".rstrip()
        if self._last is None:
            return "waiting for the first record"
        last = time.strftime("%H:%M", self._local_time(self._last))
        return f"waiting, {self._offset:,} learned, last at {last}"
