"""Moments after a repair: of retained samples alone, of no label, and such that the next step is no leap."""

import functools
from dataclasses import replace

import pytest
import torch
from forgetting_repairs import LABELS, learner_of, taught
from pictures import make_batch

from streamcl.forgetting.methods.weight_repair import derive_moments
from streamcl.learners.adapter_model import AdapterModel

RETAINED = make_batch(300, LABELS * 10).samples


@pytest.fixture
def learner(tiny_backbone, fp32):
    return taught(tiny_backbone, fp32, passes=2)


def moments_of(model):
    return [model.optimizer.state[parameter] for parameter in model.parameters().values()]


def squares_of(model):
    return torch.cat([each["exp_avg_sq"].flatten() for each in moments_of(model)])


def test_first_moments_are_zero_second_ones_are_not_and_the_count_of_steps_stays(learner):
    steps = float(moments_of(learner.model)[0]["step"])
    assert derive_moments(learner.model, RETAINED) == len(RETAINED)
    for each in moments_of(learner.model):
        assert float(each["exp_avg"].abs().max()) == 0.0
        assert float(each["exp_avg_sq"].min()) > 0.0
        assert float(each["step"]) == steps > 1


def test_what_the_moments_were_before_plays_no_part(learner):
    derive_moments(learner.model, RETAINED)
    once = squares_of(learner.model)
    for each in moments_of(learner.model):
        each["exp_avg"].fill_(7.0)
        each["exp_avg_sq"].fill_(3.0)
    derive_moments(learner.model, RETAINED)
    assert torch.equal(squares_of(learner.model), once)


def test_labels_play_no_part(learner):
    derive_moments(learner.model, RETAINED)
    once = squares_of(learner.model)
    derive_moments(learner.model, [replace(sample, label=None) for sample in RETAINED])
    assert torch.equal(squares_of(learner.model), once)


def test_other_samples_make_other_moments(learner):
    derive_moments(learner.model, RETAINED)
    once = squares_of(learner.model)
    derive_moments(learner.model, make_batch(900, LABELS * 10).samples)
    assert not torch.equal(squares_of(learner.model), once)


def test_the_next_step_is_shorter_than_one_of_a_fresh_optimizer(learner, tiny_backbone, fp32):
    fresh = learner_of(tiny_backbone, fp32)
    fresh.load_state_dict(learner.state_dict())
    fresh.model.optimizer.state.clear()
    derive_moments(learner.model, RETAINED)
    assert moved(learner) < 0.5 * moved(fresh)


def moved(learner):
    """How far one batch takes the weights."""
    before = [parameter.detach().clone() for parameter in learner.model.parameters().values()]
    learner.learn(make_batch(600, LABELS * 4))
    pairs = zip(learner.model.parameters().values(), before, strict=True)
    return float(torch.cat([(now.detach() - then).flatten() for now, then in pairs]).norm())


def test_without_such_moments_steps_or_samples_there_are_none(learner, tiny_backbone, fp32):
    never = learner_of(tiny_backbone, fp32).model
    plain = AdapterModel(
        tiny_backbone,
        fp32,
        None,
        optimizer=functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        generator=torch.Generator(),
    )
    plain.step(plain.forward(make_batch(0, LABELS * 4)).logits.square().sum() + plain.head.weight.sum())
    assert len(plain.optimizer.state) > 0
    for model, samples in ((never, RETAINED), (plain, RETAINED), (learner.model, ())):
        assert derive_moments(model, samples) == 0
        assert len(model.optimizer.state) == 0
