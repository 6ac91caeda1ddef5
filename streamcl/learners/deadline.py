"""Predictions by a deadline: all samples as far as time allows, then the least certain ones further."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from streamcl.capabilities.prediction_interfaces import ExitsEarly, PartialPredictions
from streamcl.events import Sample

ADVANCED_TOGETHER = 8
"""Samples that go on together once not all can: fewer take more time each, more of them the least certain
ones no further."""
LATEST_WEIGHT = 0.5
"""Weight of the latest measurement among those of a group of blocks: a busy machine is noticed at once."""


class DeadlinePredictions(NamedTuple):
    """Logits [N, C] of N samples, the number [N] of the exit that gave each, and the seconds that it took."""

    logits: Tensor
    exits: Tensor
    seconds: float


class GroupTimes:
    """Seconds of each group of blocks, as measured, by the number of rows that are computed together."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], float] = {}

    def add(self, number: int, rows: int, seconds: float) -> None:
        """Take in a measurement of the group before an exit."""
        known = self._seconds.get((number, rows), seconds)
        self._seconds[number, rows] = known + LATEST_WEIGHT * (seconds - known)

    def expected(self, number: int, rows: int) -> float:
        """Return the seconds of the group before an exit; 0 where it was never measured."""
        if (number, rows) in self._seconds:
            return self._seconds[number, rows]
        others = (
            seconds * rows / size for (exit_, size), seconds in self._seconds.items() if exit_ == number
        )
        return max(others, default=0.0)


class DeadlineScheduler:
    """Takes samples from exit to exit until a deadline, by the measured time of each group of blocks.

    All samples go to the deepest exit for which there is time for all of them, to the first one in any case.
    Then those with the smallest margin go on, a few at a time, each time by the newest margins. A group of
    blocks is begun only where its expected time is left, so a deadline is missed by the time of one group at
    most, and otherwise only where the first exit takes longer.

    Args:
        exits: of the learner.
        times: of its groups of blocks, which each call adds to.
        clock: returns the time in seconds.
    """

    def __init__(
        self, exits: ExitsEarly, times: GroupTimes, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._exits, self._times, self._clock = exits, times, clock

    def measure(self, samples: Sequence[Sample]) -> None:
        """Measure each group of blocks on samples, one or more, once all that is computed once is there."""
        times = self._times
        for self._times in (GroupTimes(), times):
            for count in (min(ADVANCED_TOGETHER, len(samples)), len(samples)):
                self._walk_through(samples[:count])

    def predict(self, samples: Sequence[Sample], seconds: float) -> DeadlinePredictions:
        """Return the logits of samples, one or more, from the exit that each came to within the seconds."""
        began = self._clock()
        walk, end = self._begun(samples), began + seconds
        everything = torch.arange(len(samples))
        while self._fits(walk, everything, end):
            self._advance(walk, everything, self._clock())
        while (chosen := self._least_certain(walk, end)) is not None:
            self._advance(walk, chosen, self._clock())
        return DeadlinePredictions(walk.logits, walk.exits, self._clock() - began)

    def _walk_through(self, samples: Sequence[Sample]) -> None:
        walk, everything = self._begun(samples), torch.arange(len(samples))
        for _ in self._exits.costs[1:]:
            self._advance(walk, everything, self._clock())

    def _begun(self, samples: Sequence[Sample]) -> PartialPredictions:
        """Return samples at the first exit; what precedes its blocks is counted with them."""
        began = self._clock()
        walk = self._exits.begin(samples)
        self._advance(walk, torch.arange(len(samples)), began)
        return walk

    def _advance(self, walk: PartialPredictions, places: Tensor, began: float) -> None:
        walk.advance(places)
        number, rows = int(walk.exits[places[0]]), self._exits.rows_computed(len(places))
        self._times.add(number, rows, self._clock() - began)

    def _least_certain(self, walk: PartialPredictions, end: float) -> Tensor | None:
        """Return the samples that go on next; None where there are none, or no time for one."""
        going = (walk.exits < len(self._exits.costs) - 1).nonzero()[:, 0]
        if not len(going):
            return None
        order = going[walk.margins[going].argsort(stable=True)]
        order = order[walk.exits[order] == walk.exits[order[0]]]
        chunks = (
            order[:count] for count in (ADVANCED_TOGETHER, ADVANCED_TOGETHER // 2, ADVANCED_TOGETHER // 4, 1)
        )
        return next((chunk for chunk in chunks if self._fits(walk, chunk, end)), None)

    def _fits(self, walk: PartialPredictions, places: Tensor, end: float) -> bool:
        """Return whether there is a next exit for samples at the same one, and time to reach it."""
        number = int(walk.exits[places[0]]) + 1
        if number == len(self._exits.costs):
            return False
        expected = self._times.expected(number, self._exits.rows_computed(len(places)))
        return self._clock() + expected <= end
