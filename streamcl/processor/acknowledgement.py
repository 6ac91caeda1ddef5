"""Positions of commits, of which the source is let know once no restart goes back behind them."""

from __future__ import annotations

from collections import deque

from streamcl.protocols import CheckpointStore, Source, State
from streamcl.sources.delivery import Acknowledging


class SavedPositions:
    """The steps and the source's positions of the commits that are not acknowledged yet."""

    def __init__(self, source: Source, checkpoints: CheckpointStore | None) -> None:
        self._source, self._checkpoints = source, checkpoints
        self._saved: deque[tuple[int, State]] = deque()

    def add(self, step: int, position: State) -> None:
        """Take the position of a commit."""
        self._saved.append((step, position))

    def acknowledge(self) -> None:
        """Let the source know the position of the oldest checkpoint: no restart goes back behind it."""
        oldest = None if self._checkpoints is None else self._checkpoints.oldest_step()
        passed = [each for each in self._saved if oldest is not None and each[0] <= oldest]
        if passed and isinstance(self._source, Acknowledging):
            self._source.acknowledge(passed[-1][1])
        for _ in passed:
            self._saved.popleft()
