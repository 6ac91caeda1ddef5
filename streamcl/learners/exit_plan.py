"""Thresholds of exits for a budget: a Markov chain whose states are the exits, without loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ExitPlan:
    """Thresholds of the margin at each exit but the last, and the cost that is expected of them, in [0, 1].

    reach: the share of samples that come to each exit.
    """

    thresholds: tuple[float, ...]
    expected_cost: float
    reach: tuple[float, ...]


def plan_exits(margins: Tensor, costs: Sequence[float], budget: float) -> ExitPlan | None:
    """Return the highest thresholds whose expected cost is within a budget; None where no exit is.

    All thresholds are the same quantile of the margins at their exit, so that one number is sought. The
    expected cost rises with it.

    Args:
        margins: of N samples at each exit but the last, float64 [N, K - 1].
        costs: of the K exits, each beyond the one before.
        budget: in the unit of the costs.
    """
    ordered = margins.sort(dim=0).values
    low, high = (
        0,
        len(margins) + 1,
    )  # numbers of samples below the threshold; the first is possible, the last not
    if costs[0] > budget:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        within = _plan(margins, ordered, costs, middle).expected_cost <= budget
        low, high = (middle, high) if within else (low, middle)
    return _plan(margins, ordered, costs, low)


def expected_cost(costs: Sequence[float], going_on: Sequence[float]) -> float:
    """Return the mean cost of a chain of exits: of each exit's cost times the share that comes there.

    Args:
        costs: of the K exits, each beyond the one before.
        going_on: of those that come to each exit but the last, the share that does not leave there.
    """
    total, reach = 0.0, 1.0
    for cost, share in zip(costs, [*going_on, 0.0], strict=True):
        total += reach * cost
        reach *= share
    return total


def _plan(margins: Tensor, ordered: Tensor, costs: Sequence[float], below: int) -> ExitPlan:
    if below == 0:
        thresholds = [-math.inf] * margins.shape[1]
    elif below == len(ordered):
        thresholds = [math.inf] * margins.shape[1]
    else:
        thresholds = ordered[below].tolist()
    left, going_on, reach = margins, list[float](), [1.0]
    for number, threshold in enumerate(thresholds):
        staying = left[left[:, number] < threshold]
        going_on.append(len(staying) / len(left) if len(left) else 0.0)
        reach.append(reach[-1] * going_on[-1])
        left = staying
    return ExitPlan(tuple(thresholds), expected_cost(costs, going_on), tuple(reach))
