"""Predictions by a deadline, on real exits with a clock that their work moves on."""

import math

import pytest
import torch
from pictures import make_batch
from tiny_learners import LABELS, hybrid, ridge, teach

from streamcl.capabilities.declaration import capabilities_of
from streamcl.learners.deadline import ADVANCED_TOGETHER, DeadlineScheduler, GroupTimes

SAMPLES = make_batch(4000, LABELS * 6).samples


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class ClockedWalk:
    """Advances samples for real, and moves the clock on by seconds for each row and group of blocks."""

    def __init__(self, exits, samples):
        self._exits, self._walk = exits, exits.real.begin(samples)

    def __getattr__(self, name):
        return getattr(self._walk, name)

    def advance(self, places):
        number = int(self._walk.exits[places[0]]) + 1
        before = self._walk.margins.clone(), self._walk.exits.clone()
        self._walk.advance(places)
        self._exits.steps.append((number, places, *before))
        seconds = self._exits.seconds_a_row * (number + 1) * len(places)
        self._exits.longest = max(self._exits.longest, seconds)
        self._exits.clock.now += seconds


class ClockedExits:
    def __init__(self, real, clock, seconds_a_row=1.0):
        self.real, self.clock, self.seconds_a_row = real, clock, seconds_a_row
        self.costs, self.steps, self.longest = real.costs, [], 0.0

    def begin(self, samples):
        return ClockedWalk(self, samples)

    def predict(self, samples, thresholds):
        return self.real.predict(samples, thresholds)

    def rows_computed(self, count):
        return count


@pytest.fixture(params=[ridge, hybrid], ids=lambda make: make.__name__)
def learner(request, tiny_backbone, fp32):
    made = request.param(tiny_backbone, fp32)
    teach(made, batches=10)
    return made


@pytest.fixture
def exits(learner):
    return ClockedExits(capabilities_of(learner).early_exit, Clock())


@pytest.fixture
def scheduler(exits):
    found = DeadlineScheduler(exits, GroupTimes(), clock=exits.clock)
    found.measure(SAMPLES)
    exits.steps.clear()
    return found


def seconds_to(number):
    """Seconds of all samples up to an exit."""
    return len(SAMPLES) * sum(range(1, number + 2))


def test_with_time_for_everything_it_is_predict(learner, exits, scheduler):
    last = len(exits.costs) - 1
    found = scheduler.predict(SAMPLES, seconds_to(last))
    assert torch.equal(found.logits, learner.logits(SAMPLES))
    assert set(found.exits.tolist()) == {last}
    assert found.seconds == seconds_to(last)


def test_without_time_every_sample_has_the_first_exit(exits, scheduler):
    found = scheduler.predict(SAMPLES, 0.0)
    first = exits.real.predict(SAMPLES, [-math.inf] * (len(exits.costs) - 1))
    assert torch.equal(found.logits, first.logits)
    assert set(found.exits.tolist()) == {0}


def test_all_come_to_the_deepest_exit_that_fits_and_no_group_is_begun_without_its_time(exits, scheduler):
    found = scheduler.predict(SAMPLES, seconds_to(1))
    assert set(found.exits.tolist()) == {1}
    assert found.seconds == seconds_to(1)


@pytest.mark.parametrize("extra", [1, 7, 30, 61])
def test_the_time_that_is_left_goes_to_the_least_certain(exits, scheduler, extra):
    found = scheduler.predict(SAMPLES, seconds_to(0) + extra)
    assert found.seconds <= seconds_to(0) + extra
    for number, places, margins, reached in exits.steps[1:]:
        if len(places) == len(SAMPLES):
            continue
        assert len(places) <= ADVANCED_TOGETHER
        assert set(reached[places].tolist()) == {number - 1}
        assert int(margins.where(reached < len(exits.costs) - 1, math.inf).argmin()) in places.tolist()
        others = reached == number - 1
        others[places] = False
        if bool(others.any()):
            assert float(margins[places].max()) <= float(margins[others].min())
    assert extra < 2 or bool((found.exits > 0).any())
    for number in set(found.exits.tolist()):
        chosen = (found.exits == number).nonzero()[:, 0]
        thresholds = [math.inf] * (len(exits.costs) - 1)
        if number < len(thresholds):
            thresholds[number] = -math.inf
        alone = exits.real.predict([SAMPLES[i] for i in chosen], thresholds)
        assert torch.allclose(found.logits[chosen], alone.logits, rtol=1e-9)


def test_more_time_never_takes_a_sample_less_far(exits, scheduler):
    spent = [
        float((scheduler.predict(SAMPLES, seconds_to(0) + extra).exits + 1).sum()) for extra in (0, 9, 40, 90)
    ]
    assert spent == sorted(spent)


def test_a_machine_that_becomes_slower_costs_one_group_at_most(exits, scheduler):
    exits.seconds_a_row = 5.0
    limit = seconds_to(1)
    exits.longest = 0.0
    found = scheduler.predict(SAMPLES, limit)
    assert found.seconds <= limit + exits.longest
    again = scheduler.predict(SAMPLES, 5 * seconds_to(1))
    assert set(again.exits.tolist()) >= {1}


def test_one_sample_and_no_measurement_beforehand(exits):
    scheduler = DeadlineScheduler(exits, GroupTimes(), clock=exits.clock)
    found = scheduler.predict(SAMPLES[:1], 1e9)
    assert found.exits.tolist() == [len(exits.costs) - 1]
