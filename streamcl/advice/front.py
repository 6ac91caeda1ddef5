"""The Pareto front of candidates, by enumeration, and the choice within a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Correct = npt.NDArray[np.bool_]
"""Bool [n]: which of the probe's samples a candidate predicts correctly, each left out."""


@dataclass(frozen=True, slots=True)
class Costs:
    """The accuracy of a candidate, in [0, 1], the seconds of one prediction, and the bytes of a run."""

    accuracy: float
    seconds: float
    memory: float

    def dominates(self, other: Costs) -> bool:
        """Return whether it is as good in every respect, and better in one."""
        pairs = ((self.accuracy, other.accuracy), (-self.seconds, -other.seconds))
        better = [one - two for one, two in (*pairs, (-self.memory, -other.memory))]
        return min(better) >= 0 and max(better) > 0


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper limits of the seconds of one prediction, and of the bytes of a run."""

    seconds: float = math.inf
    memory: float = math.inf

    def excess(self, costs: Costs) -> float:
        """Return the largest ratio of a cost to its limit; at most 1 where all are within."""
        return max(costs.seconds / self.seconds, costs.memory / self.memory)


def pareto_front(costs: Sequence[Costs]) -> list[int]:
    """Return the places of those that no other dominates, by ascending seconds.

    In one pass by ascending seconds: only an earlier one, or one of equal seconds, can dominate.

    >>> pareto_front([Costs(0.9, 2, 1), Costs(0.8, 1, 1), Costs(0.8, 3, 1)])
    [1, 0]
    """
    order = sorted(
        range(len(costs)), key=lambda at: (costs[at].seconds, costs[at].memory, -costs[at].accuracy)
    )
    front = list[int]()
    for place in order:
        if not any(costs[other].dominates(costs[place]) for other in front):
            front.append(place)
    return front


def accuracy_error(correct: Correct) -> float:
    """Return the standard error of an accuracy, sqrt(p (1 - p) / n).

    Args:
        correct: bool [n].
    """
    share = float(correct.mean())
    return math.sqrt(share * (1 - share) / len(correct))


def is_tie(best: Correct, other: Correct) -> bool:
    """Return whether two accuracies on the same samples differ by less than the difference's standard error.

    Args:
        best: bool [n].
        other: bool [n].
    """
    difference = best.astype(float) - other.astype(float)
    return float(difference.mean()) <= float(difference.std()) / math.sqrt(len(difference))


def ties_with_best(costs: Sequence[Costs], correct: Sequence[Correct], budget: Budget) -> list[int]:
    """Return the places of those within the budget that tie with the most accurate of them, itself included.

    Args:
        costs: of each candidate.
        correct: bool [n] of each candidate, on the same n samples.
        budget: its limits.
    """
    within = [place for place, each in enumerate(costs) if budget.excess(each) <= 1]
    if not within:
        return []
    best = max(within, key=lambda place: (costs[place].accuracy, -costs[place].seconds))
    return [place for place in within if is_tie(correct[best], correct[place])]


def recommend(costs: Sequence[Costs], ties: Sequence[int]) -> int | None:
    """Return the place of the candidate to take, the cheapest by seconds and then memory; None without ties.

    Args:
        costs: of each candidate.
        ties: places of those to choose from, see `ties_with_best`.
    """
    if not ties:
        return None
    return min(ties, key=lambda place: (costs[place].seconds, costs[place].memory, -costs[place].accuracy))


def nearest_feasible(costs: Sequence[Costs], budget: Budget) -> int:
    """Return the place of the candidate that exceeds the budget by the smallest ratio."""
    return min(range(len(costs)), key=lambda place: budget.excess(costs[place]))
