"""The Pareto front is that of a comparison of all pairs; of ties the cheapest is recommended."""

import math

import numpy as np
import pytest

from streamcl.advice.front import (
    Budget,
    Costs,
    accuracy_error,
    is_tie,
    nearest_feasible,
    pareto_front,
    recommend,
    ties_with_best,
)


def table(seed, count=60, levels=6):
    """Costs with many equal values, so that some candidates are equal in all respects."""
    draw = np.random.default_rng(seed)
    return [Costs(a / levels, s, m) for a, s, m in draw.integers(1, levels + 1, (count, 3)).tolist()]


def is_dominated(one, other):
    """Whether another is as good in every respect and better in one, spelled out."""
    as_good = other.accuracy >= one.accuracy and other.seconds <= one.seconds and other.memory <= one.memory
    return as_good and other != one


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_that_of_all_pairs(seed):
    costs = table(seed)
    expected = {
        place for place, each in enumerate(costs) if not any(is_dominated(each, other) for other in costs)
    }
    found = pareto_front(costs)
    assert set(found) == expected
    assert [costs[place].seconds for place in found] == sorted(costs[place].seconds for place in found)


def predictions(share, count=400, shift=0):
    """Which of the samples are predicted correctly, of which that share is."""
    return np.roll(np.arange(count) < share * count, shift)


def test_an_accuracy_has_the_accuracy_error_of_a_share():
    assert accuracy_error(predictions(0.8)) == pytest.approx(math.sqrt(0.8 * 0.2 / 400))


def test_a_tie_is_a_difference_within_its_own_accuracy_error():
    best = predictions(0.8)
    assert is_tie(best, best)
    one_less = best.copy()
    one_less[:2], one_less[-1] = False, True
    assert is_tie(best, one_less)  # one less, of three that differ
    twenty_less = best.copy()
    twenty_less[:20] = False
    assert not is_tie(best, twenty_less)
    assert is_tie(best, predictions(0.78, shift=100))  # a difference of 8 with many disagreements


def test_the_most_accurate_within_the_budget_is_recommended():
    costs = [Costs(0.9, 3.0, 10), Costs(0.8, 2.0, 10), Costs(0.6, 1.0, 10)]
    correct = [predictions(each.accuracy) for each in costs]
    assert recommend(costs, ties_with_best(costs, correct, Budget())) == 0
    assert recommend(costs, ties_with_best(costs, correct, Budget(seconds=2.5))) == 1
    assert recommend(costs, ties_with_best(costs, correct, Budget(seconds=2.5, memory=10))) == 1
    assert recommend(costs, ties_with_best(costs, correct, Budget(seconds=1.0))) == 2
    assert recommend(costs, ties_with_best(costs, correct, Budget(memory=9))) is None


def test_of_ties_the_cheapest_is_recommended():
    correct = [predictions(0.8), predictions(0.8, shift=1), predictions(0.6)]
    costs = [Costs(0.8, 3.0, 10), Costs(0.8 - 1e-9, 2.0, 10), Costs(0.6, 1.0, 10)]
    assert recommend(costs, ties_with_best(costs, correct, Budget())) == 1


def test_the_nearest_exceeds_the_budget_by_the_smallest_ratio():
    costs = [Costs(0.9, 3.0, 10), Costs(0.8, 2.0, 40), Costs(0.6, 1.5, 20)]
    assert nearest_feasible(costs, Budget(seconds=1.0, memory=10)) == 2
    assert nearest_feasible(costs, Budget(seconds=0.1)) == 2
    assert Budget(seconds=1.5, memory=20).excess(costs[2]) == 1
