"""Baselines do what their papers say: what is rehearsed, what holds weights back, what is never touched."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import make_batch
from tiny_learners import BASELINES, LABELS, der_pp, er, ewc_pp, frozen_linear, naive_lora, teach

from streamcl.learners.baselines.replay import logit_mse
from streamcl.memory.reservoir import Reservoir
from streamcl.storage.plain_state import state_hash


def samples(count, offset=0):
    return make_batch(offset, ["ant"] * count).samples


def reservoir(capacity=10, seed=0):
    return Reservoir(capacity, torch.Generator().manual_seed(seed))


# --- reservoir ------------------------------------------------------------------------------------


def test_a_reservoir_is_a_uniform_sample_of_everything_offered():
    offered, capacity, trials = samples(60), 10, 400
    held = np.zeros(60)
    for seed in range(trials):
        buffer = reservoir(capacity, seed)
        for k in range(0, 60, 7):
            buffer.offer(offered[k : k + 7])
        assert len(buffer) == capacity
        held += [sample.id in {each.id for each in buffer.samples} for sample in offered]
    expected = trials * capacity / 60
    assert np.abs(held - expected).max() < 4.5 * math.sqrt(expected * (1 - capacity / 60))


@settings(deadline=None, max_examples=25)
@given(cut=st.integers(0, 12), seed=st.integers(0, 99))
def test_a_restored_reservoir_goes_on_as_the_other(cut, seed):
    generators = [torch.Generator().manual_seed(each) for each in (seed, 1000)]
    straight, twin = Reservoir(5, generators[0]), None
    for k in range(12):
        if k == cut:
            twin = Reservoir(5, generators[1])
            generators[1].set_state(generators[0].get_state())
            twin.load_state_dict(straight.state_dict())
        for each in (one for one in (straight, twin) if one is not None):
            each.offer(samples(3, 3 * k), torch.arange(3.0 * (1 + k)).view(3, -1))
    if twin is not None:
        assert state_hash(twin.state_dict()) == state_hash(straight.state_dict())
        drawn = [[kept.sample.id for kept in each.draw(4)] for each in (straight, twin)]
        assert drawn[0] == drawn[1]
        assert len(set(drawn[0])) == 4


def test_what_is_purged_is_gone_and_no_more():
    buffer = reservoir()
    buffer.offer(samples(30))
    gone = buffer.samples[3].id
    assert buffer.purge(lambda sample: sample.id == gone) == 1
    assert gone not in {sample.id for sample in buffer.samples}
    assert len(buffer) == 9


def test_a_reservoir_holds_something():
    with pytest.raises(ValueError, match="capacity is 0"):
        reservoir(0)


# --- learners -------------------------------------------------------------------------------------


def two_tasks(learner):
    teach(learner, labels=LABELS[:2], batches=25)
    learner.consolidate()
    teach(learner, labels=LABELS[2:], batches=65, start=1000)
    return learner


def accuracy(learner, labels):
    asked = make_batch(5000, list(labels) * 10).samples
    answers = learner.predict(asked)
    return np.mean([answer.label == sample.label for answer, sample in zip(answers, asked, strict=True)])


@pytest.mark.long
def test_without_a_remedy_old_classes_are_forgotten_and_rehearsal_keeps_them(tiny_backbone, fp32):
    assert accuracy(two_tasks(naive_lora(tiny_backbone, fp32)), LABELS[:2]) < 0.3
    for make in (er, der_pp):
        assert accuracy(two_tasks(make(tiny_backbone, fp32)), LABELS) > 0.8


def test_only_the_stated_number_of_images_is_kept(tiny_backbone, fp32):
    for make in (er, der_pp):
        learner = make(tiny_backbone, fp32)
        teach(learner, batches=10)
        assert len(learner.buffer) == 20
        assert learner.buffer.purge(lambda sample: sample.label == "ant") > 0
        assert all(sample.label != "ant" for sample in learner.buffer.samples)


def test_a_frozen_backbone_has_a_head_and_nothing_else_to_train(tiny_backbone, fp32):
    learner = frozen_linear(tiny_backbone, fp32)
    before = learner.model.features(make_batch(0, LABELS).samples)
    teach(learner)
    assert torch.equal(learner.model.features(make_batch(0, LABELS).samples), before)
    assert set(learner.model.parameters()) == {"head.weight", "head.bias"}
    assert learner.state_dict()["adapters"] == {}


def test_derpp_matches_old_logits_over_the_columns_they_had():
    now = torch.tensor([[1.0, 2.0, 9.0], [3.0, 4.0, 5.0]])
    then = [torch.tensor([0.0, 2.0]), torch.tensor([3.0, 4.0, 8.0])]
    assert logit_mse(now, then) == pytest.approx((1 + 9) / 5)
    assert logit_mse(now, [torch.zeros(0), torch.zeros(0)]) == 0


def test_derpp_keeps_the_logits_of_the_moment(tiny_backbone, fp32):
    learner = der_pp(tiny_backbone, fp32)
    teach(learner, labels=LABELS[:2], batches=1)
    held = learner.buffer.draw(8)
    assert {len(kept.logits) for kept in held} == {2}
    teach(learner, labels=LABELS, batches=1, start=100)
    assert {len(kept.logits) for kept in learner.buffer.draw(16)} == {2, 4}


def moved(learner, anchor, importance):
    """How far old weights are from the anchor, each as important as it was then."""
    now = learner.model.parameters()
    apart = {name: (now[name].detach()[: len(a)] - a).square() for name, a in anchor.items()}
    return sum(float((importance[name] * apart[name]).sum()) for name in anchor)


def running_importance(learner):
    return {name: torch.from_numpy(each) for name, each in learner.state_dict()["running"].items()}


def test_ewc_pulls_weights_towards_where_they_settled(tiny_backbone, fp32):
    distances = []
    for strength in (0.0, 1e6):
        learner = ewc_pp(tiny_backbone, fp32, strength=strength)
        teach(learner, labels=LABELS[:2], batches=10)
        learner.consolidate()
        anchor = {name: p.detach().clone() for name, p in learner.model.parameters().items()}
        importance = running_importance(learner)
        teach(learner, labels=LABELS[2:], batches=10, start=1000)
        distances.append(moved(learner, anchor, importance))
    assert distances[1] < 0.2 * distances[0]


def test_before_the_first_consolidation_ewc_is_the_plain_learner(tiny_backbone, fp32):
    plain, ewc = naive_lora(tiny_backbone, fp32), ewc_pp(tiny_backbone, fp32)
    assert teach(plain) == teach(ewc)


def test_the_running_importance_is_a_mean_of_squared_gradients(tiny_backbone, fp32):
    learner = ewc_pp(tiny_backbone, fp32)
    teach(learner, batches=1)
    for name, value in running_importance(learner).items():
        assert value.shape == learner.model.parameters()[name].shape
        assert (value >= 0).all()
    assert learner.consolidate()["importance"] > 0


@pytest.mark.parametrize("make", BASELINES, ids=lambda make: make.__name__)
def test_numbers_that_are_not_finite_change_nothing(make, tiny_backbone, fp32, monkeypatch):
    learner = make(tiny_backbone, fp32)
    teach(learner)
    before = state_hash(learner.state_dict())
    final = type(tiny_backbone).final
    monkeypatch.setattr(type(tiny_backbone), "final", lambda self, tokens: final(self, tokens) * float("nan"))
    assert not learner.learn(make_batch(800, ["ant", "bee"])).learned
    assert state_hash(learner.state_dict()) == before


@pytest.mark.parametrize("make", BASELINES, ids=lambda make: make.__name__)
def test_whose_samples_were_learned_has_changed_shared_weights(make, tiny_backbone, fp32):
    learner = make(tiny_backbone, fp32)
    assert learner.weights_trained_on(iter([])) == ()
    assert "head" in learner.weights_trained_on(iter([["a trace"]]))
