"""Erased classes are tested again after shifts: a no-op for sums, a real test for shared weights."""

import json

import numpy as np
import torch
from conftest import make_batch

from streamcl.audit.relapse import Relapse
from streamcl.heads.ridge import RidgeHead
from streamcl.learners.ridge import RidgeLearner

ERASED = "cat"
HELD = make_batch(0, ["cat", "dog", "ant"] * 30).samples


class Adapted:
    """Shared weights in one number: how far the erased class stands off in the features."""

    classes = ("dog", "ant")

    def __init__(self, distance):
        self.distance = distance

    def features(self, samples):
        rng = np.random.default_rng(len(samples))
        shift = np.array([[self.distance * (sample.label == ERASED), 0.0] for sample in samples])
        return torch.from_numpy(rng.normal(size=(len(samples), 2)) + shift)


def relapse(holdout=HELD):
    return Relapse(lambda name: name == ERASED, lambda name: f"hash-{len(name)}", holdout)


def test_what_stays_erased_is_no_relapse():
    monitor = relapse()
    monitor.watch(Adapted(0.3))
    found = monitor.check(Adapted(0.3))
    assert (found.relapsed, found.tested) == ((), 1)


def test_shared_weights_that_separate_an_erased_class_again_are_a_relapse():
    monitor = relapse()
    monitor.watch(Adapted(0.0))
    found = monitor.check(Adapted(4.0))
    assert found.relapsed == (ERASED,)
    assert found.risen == 1


def test_a_model_that_names_an_erased_class_is_a_relapse_without_any_samples():
    learner = Adapted(0.0)
    learner.classes = ("dog", ERASED)
    found = relapse(holdout=()).check(learner)
    assert (found.relapsed, found.named, found.tested) == ((ERASED,), 1, 0)
    assert "no held-out samples" in found.reason


def test_for_sums_on_fixed_features_it_is_said_that_nothing_can_come_back(tiny_backbone, fp32):
    learner = RidgeLearner(tiny_backbone, fp32, RidgeHead(3 * 64), blocks=(0, 1, 2))
    learner.learn(make_batch(0, ["dog", "ant"] * 4))
    monitor = relapse()
    monitor.watch(learner)
    assert monitor.state_dict() == {"known": {}}
    found = monitor.check(learner)
    assert found.relapsed == ()
    assert "sums on fixed features" in found.reason


def test_nothing_of_the_class_but_a_hash_is_kept_or_logged():
    monitor = relapse()
    monitor.watch(Adapted(0.0))
    found = monitor.check(Adapted(4.0))
    assert ERASED not in json.dumps(monitor.state_dict())
    assert ERASED not in json.dumps(found.to_json())


def test_it_goes_on_from_its_state():
    monitor, other = relapse(), relapse()
    monitor.watch(Adapted(0.0))
    other.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    assert other.check(Adapted(4.0)) == monitor.check(Adapted(4.0))
    other.watch(Adapted(4.0))  # what was noted at the erasure stays the measure
    assert other.check(Adapted(4.0)).risen == 1
