"""Stability and novelty of predictions: of the logits of `predict`, and as if erased samples never came."""

import math
from dataclasses import replace

import pytest
import torch
from pictures import make_batch
from tiny_learners import LABELS, hybrid, latent, ncm, ridge, slda, teach

from streamcl.capabilities.declaration import capabilities_of
from streamcl.runs.learner import AssessedPrediction, assess_predictions, rank_classes

SAMPLES = make_batch(4000, LABELS).samples


@pytest.fixture(params=[ridge, hybrid, latent], ids=lambda make: make.__name__)
def make(request, tiny_backbone, fp32):
    return lambda **options: request.param(tiny_backbone, fp32, **options)


def teach_noisily(learner, batches, start=0):
    """Learn pictures of which a third has the next one's label, so that predictions are not certain."""
    for k in range(start, start + batches):
        batch = make_batch(8 * k, LABELS * 2)
        swapped = [LABELS[(i + (i + k) % 3 // 2) % 4] for i in range(8)]
        samples = [replace(each, label=label) for each, label in zip(batch.samples, swapped, strict=True)]
        learner.learn(replace(batch, samples=tuple(samples)))


def assessment_of(learner):
    return capabilities_of(learner).assessment.assess(SAMPLES)


def test_it_is_of_the_logits_that_predict_uses_and_changes_nothing(make):
    learner = make()
    teach_noisily(learner, 10)
    before = learner.logits(SAMPLES)
    found = assessment_of(learner)
    assert torch.equal(found.logits, before)
    assert torch.equal(learner.logits(SAMPLES), before)
    assert bool(((found.flips > 0) & (found.flips < 1)).all())
    assert bool((found.novelty > 0).all())


@pytest.mark.parametrize("top", [1, 3])
def test_predictions_with_an_assessment_are_the_same_predictions(make, top):
    learner = make()
    teach_noisily(learner, 10)
    plain, assessed = rank_classes(learner, SAMPLES, top), assess_predictions(learner, SAMPLES, top)
    assert [each.ranked for each in assessed] == plain
    for each in assessed:
        assert 0 <= each.stability <= 1
        assert each.novelty > 0


def test_further_samples_make_predictions_more_stable(make):
    learner, flips = make(), []
    for start, batches in ((0, 6), (6, 40)):
        teach_noisily(learner, batches, start)
        flips.append(float(assessment_of(learner).flips.mean()))
    assert flips[0] > flips[1]


def test_after_an_erasure_it_is_that_of_a_learner_that_never_saw_the_samples(make):
    learner, other = make(), make()
    for each in (learner, other):
        teach_noisily(each, 10)
    extra = make_batch(80, LABELS * 2)
    learner.learn(extra)
    statistics = learner.statistics
    statistics.subtract(statistics.of(extra.samples))
    if (retrained := capabilities_of(learner).retrained) is not None:
        assert retrained.remove(extra.offsets)
    found, expected = assessment_of(learner), assessment_of(other)
    assert found.flips.tolist() == pytest.approx(expected.flips.tolist(), rel=1e-6)
    assert found.novelty.tolist() == pytest.approx(expected.novelty.tolist(), rel=1e-7)


@pytest.mark.parametrize("batches", [0, 1])
def test_before_anything_is_learned_nothing_is_known(make, batches):
    learner = make()
    for each in assess_predictions(learner, SAMPLES, 1):
        assert (each.ranked[0].label, each.stability, each.novelty) == (None, None, None)
    teach(learner, labels=["ant"], batches=batches)
    assert all(math.isfinite(each) for each in assessment_of(learner).flips.tolist()) == bool(batches)


def test_the_blend_of_a_branch_that_is_still_adapting_is_the_frozen_branch_alone(tiny_backbone, fp32):
    learner = hybrid(tiny_backbone, fp32, adapt=10_000)
    teach(learner, batches=4)
    assert capabilities_of(learner).assessment.assess(SAMPLES).flips.isfinite().all()


@pytest.mark.parametrize("kind", [ncm, slda])
def test_learners_that_cannot_compute_it_say_so_and_predict_without(kind, tiny_backbone, fp32):
    learner = kind(tiny_backbone, fp32)
    teach(learner, batches=4)
    assert capabilities_of(learner).assessment is None
    plain = rank_classes(learner, SAMPLES, 1)
    assert assess_predictions(learner, SAMPLES, 1) == [AssessedPrediction(each) for each in plain]
