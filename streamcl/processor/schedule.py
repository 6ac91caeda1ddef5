"""When a loop commits and flushes: after so many records, or after so much time."""

from __future__ import annotations

from collections.abc import Callable

from streamcl.processor.event_log import Progress
from streamcl.processor.ports import LoopPolicy


class CommitSchedule:
    """Decides when a commit and a flush are due. agree: returns the first rank's decision on every rank."""

    def __init__(
        self,
        policy: LoopPolicy,
        progress: Progress,
        clock: Callable[[], float],
        agree: Callable[[bool], bool],
    ) -> None:
        self._policy, self._progress, self._clock, self._agree = policy, progress, clock, agree
        self._committed_at, self._flushed_at, self._committed_step = clock(), clock(), 0

    @property
    def has_uncommitted(self) -> bool:
        """Whether a batch has passed since the last commit."""
        return self._progress.step > self._committed_step

    @property
    def commit_due(self) -> bool:
        """Whether the records, or the time, between two commits have passed."""
        every, seconds, progress = self._policy.commit_every, self._policy.commit_seconds, self._progress
        due = every is not None and progress.offset // every != progress.committed // every
        if seconds is not None:
            passed = self._clock() - self._committed_at >= seconds
            due = self._agree(due or (passed and self.has_uncommitted))
        return due

    @property
    def flush_due(self) -> bool:
        """Whether the time between two flushes has passed."""
        seconds = self._policy.flush_seconds
        return seconds is not None and self._clock() - self._flushed_at >= seconds

    def committed(self) -> None:
        """Begin to wait for the next commit."""
        self._committed_at, self._committed_step = self._clock(), self._progress.step

    def flushed(self) -> None:
        """Begin to wait for the next flush."""
        self._flushed_at = self._clock()

    def restored(self) -> None:
        """Take the state that was restored as committed."""
        self._committed_step = self._progress.step
