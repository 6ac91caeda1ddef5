"""The cost model gives the times of candidates that were not measured, or all are measured."""

import pytest

from streamcl.advice.latency import LatencyModel, Workload, latencies

TOKENS = {42: 10, 70: 26, 98: 50}
DEPTHS = (2, 4, 6, 8, 11)
WORKS = {(size, depth): Workload(tokens, 2 * depth) for size, tokens in TOKENS.items() for depth in DEPTHS}


def seconds(work, bend=0.0):
    """A time by the model's own form; bend: how much more it takes as blocks grow."""
    n = work.tokens
    per_block = 2e-4 + 3e-6 * n + 4e-8 * n**2
    return 1e-3 + 1e-5 * n + work.blocks * per_block + bend * work.blocks**4


class Clock:
    """Gives the times of candidates and remembers which were measured."""

    def __init__(self, bend=0.0):
        self.bend, self.asked = bend, []

    def __call__(self, size, depth):
        self.asked.append((size, depth))
        return seconds(WORKS[size, depth], self.bend)


def test_times_that_follow_the_model_are_found_from_two_depths_a_size():
    clock = Clock()
    found = latencies(WORKS, clock)
    assert found.seconds == pytest.approx({place: seconds(work) for place, work in WORKS.items()}, rel=1e-6)
    assert found.measured == set(clock.asked) == {(size, depth) for size in TOKENS for depth in (2, 6, 11)}
    assert found.error == pytest.approx(0, abs=1e-6)


def test_where_they_do_not_all_candidates_are_measured():
    clock = Clock(bend=1e-6)
    found = latencies(WORKS, clock)
    assert found.measured == set(clock.asked) == WORKS.keys()
    assert len(clock.asked) == len(WORKS)
    assert found.error > 0.15
    assert found.seconds == {place: seconds(work, 1e-6) for place, work in WORKS.items()}


def test_one_candidate_is_measured_and_nothing_is_compared():
    found = latencies({(70, 11): WORKS[70, 11]}, Clock())
    assert found.seconds == {(70, 11): seconds(WORKS[70, 11])}
    assert found.error is None


def test_no_term_of_the_model_is_negative():
    falling = [(Workload(26, 4), 0.02), (Workload(26, 22), 0.01)]
    model = LatencyModel(falling)
    assert model.seconds(Workload(50, 44)) >= model.seconds(Workload(10, 2)) >= 0
