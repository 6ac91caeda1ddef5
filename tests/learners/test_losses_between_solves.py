"""Losses, by which shifts are found, are of weights that do not take in a new domain as soon as it comes."""

from dataclasses import replace

import pytest
from pictures import make_batch, picture
from tiny_learners import hybrid, ridge

LABELS = ["ant", "bee"]
LOOKS = {"ant": "cat", "bee": "dog"}  # of the new domain
KNOWN = 200


def of_new_domain(offset, count=4):
    """A batch of known classes that look otherwise."""
    batch = make_batch(offset, LABELS * (count // 2))
    samples = [
        replace(each, image=picture(LOOKS[each.label], offset + row))
        for row, each in enumerate(batch.samples)
    ]
    return replace(batch, samples=tuple(samples))


@pytest.fixture(params=[ridge, hybrid])
def learners(request, tiny_backbone, fp32):
    """Two learners with the same state, which a solve has just been made of."""
    pair = [request.param(tiny_backbone, fp32) for _ in range(2)]
    for offset in range(0, KNOWN, 20):
        pair[0].learn(make_batch(offset, LABELS * 10))
    pair[1].load_state_dict(pair[0].state_dict())
    return pair


def test_a_change_shows_in_losses_until_the_next_solve_though_predictions_have_learned_it(learners):
    learner, twin = learners
    learner.learn(of_new_domain(KNOWN))
    second = of_new_domain(KNOWN + 4)
    after, without = learner.learn(second), twin.learn(second)
    assert after.losses == without.losses
    assert [each.confidence for each in after.predictions] != [
        each.confidence for each in without.predictions
    ]
