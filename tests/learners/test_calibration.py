"""Confidences: the factor on scores is the likeliest, and all numbers follow what was not learned."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pictures import picture
from tiny_learners import hybrid, ncm, ridge, slda

from streamcl.capabilities.declaration import capabilities_of
from streamcl.errors import BadRecord
from streamcl.evaluation.holdout import HoldoutEvaluator
from streamcl.evaluation.reliability import ReliabilityBins
from streamcl.events import Batch, HoldoutPart, Sample
from streamcl.learners.calibration import MIN_CALIBRATION_SAMPLES, Calibration, fitted_sharpness, mean_square
from streamcl.learners.holdout_calibration import MAX_CALIBRATION_SAMPLES, HoldoutCalibrator
from streamcl.learners.holdout_features import HoldoutFeatures, sample_key
from streamcl.learners.top_label_scaling import NEUTRAL, confidence_logits, fitted_scaling

LABELS = ("ant", "bee", "cat")


def drawn(seed, count, classes=10, factor=1.0):
    """Scores [N, C], and targets drawn with the probabilities that their softmax times `factor` gives."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    chances = (factor * scores).softmax(dim=1)
    return scores, torch.multinomial(chances, 1, generator=generator)[:, 0]


def calibration_error(scores, targets, factor):
    bins = ReliabilityBins()
    sure, column = (factor * scores).softmax(dim=1).max(dim=1)
    for confidence, right in zip(sure.tolist(), (column == targets).tolist(), strict=True):
        bins.add(confidence, right=right)
    return bins.calibration_error


@pytest.mark.parametrize("factor", [0.01, 0.5, 3.0, 200.0])
def test_the_factor_that_made_the_labels_is_found_however_far_it_lies(factor):
    scores, _ = drawn(0, 4000)
    made = torch.multinomial((2.0 * scores).softmax(1), 1, generator=torch.Generator().manual_seed(1))[:, 0]
    found = fitted_sharpness(scores * 2.0 / factor, made)
    assert found == pytest.approx(factor, rel=0.05)
    assert calibration_error(scores * 2.0 / factor, made, found) < 0.03


@settings(max_examples=40, deadline=None, derandomize=True)
@example(0, 16, 1e-9)
@given(st.integers(0, 1000), st.integers(1, 60), st.sampled_from([1e-9, 1e-3, 1.0, 1e6]))
def test_the_fit_is_a_minimum_and_depends_on_no_unit(seed, count, unit):
    scores, targets = drawn(seed, count, classes=4, factor=3.0)
    factor = fitted_sharpness(scores, targets)
    expected = 3.0 / math.sqrt(mean_square(scores))

    def loss(s):
        data = torch.nn.functional.cross_entropy(s * scores, targets, reduction="sum")
        return float(data) + s / expected - math.log(s)

    assert all(loss(factor) <= loss(factor * near) for near in (0.9, 0.999, 1.001, 1.1))
    assert fitted_sharpness(unit * scores, targets) * unit == pytest.approx(factor, rel=1e-9)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert fitted_sharpness(scores[order], targets[order]) == pytest.approx(factor, rel=1e-11)


def test_samples_that_are_all_right_ask_for_no_infinite_factor():
    scores = torch.eye(5, dtype=torch.float64)
    factor = fitted_sharpness(scores, torch.arange(5))
    assert 3 / math.sqrt(mean_square(scores)) < factor < 100


@pytest.mark.parametrize("scores", [torch.zeros(3, 4), torch.zeros(3, 1), torch.full((3, 2), -math.inf)])
def test_scores_that_are_all_equal_have_no_factor(scores):
    assert fitted_sharpness(scores, torch.zeros(3, dtype=torch.int64)) is None
    assert torch.equal(Calibration().before_learning(scores), scores)


def test_a_class_that_cannot_be_predicted_changes_nothing():
    scores, targets = drawn(1, 50, classes=4)
    padded = torch.cat([scores, torch.full((50, 1), -math.inf, dtype=torch.float64)], dim=1)
    assert fitted_sharpness(padded, targets) == pytest.approx(fitted_sharpness(scores, targets), rel=1e-12)


@pytest.mark.parametrize("size", [1, 8, 64])
def test_the_running_factor_follows_accuracy_though_the_scores_change_their_unit(size):
    """A third of the samples is of classes never seen: no confidence of the classes known is right there."""
    calibration, bins = Calibration(), ReliabilityBins()
    scores, targets = drawn(2, 4096, factor=2.0)
    unit = torch.logspace(0, 3, 4096, dtype=torch.float64)[:, None]
    for start in range(0, 4096, size):
        own, target = (unit * scores)[start : start + size], targets[start : start + size].clone()
        target[torch.arange(start, start + len(target)) % 3 == 0] = 10
        sure, column = calibration.before_learning(own).softmax(dim=1).max(dim=1)
        for confidence, right in zip(sure.tolist(), (column == target).tolist(), strict=True):
            bins.add(confidence, right=right)
        calibration.update(own, target)
    assert bins.calibration_error < 0.05


def test_a_state_and_a_savepoint_restore_the_factors():
    calibration = Calibration()
    for seed in range(3):
        calibration.update(*drawn(seed, 32))
    calibration.fit(*drawn(5, 32))
    state, undo = calibration.state_dict(), calibration.savepoint()
    calibration.update(*drawn(9, 32))
    calibration.fit(*drawn(3, 4))
    assert calibration.held_out is None
    undo()
    assert calibration.state_dict() == state
    other = Calibration()
    other.load_state_dict(state)
    scores, _ = drawn(4, 8)
    assert torch.equal(other.before_learning(scores), calibration.before_learning(scores))
    assert torch.equal(other.for_predictions(scores), calibration.for_predictions(scores))
    scaled = calibration.held_out_scaling.applied(calibration.held_out * scores)
    assert torch.equal(calibration.for_predictions(scores), scaled)


def test_a_state_of_before_slope_and_offset_is_loaded_with_confidences_as_they_are():
    earlier = {"held_out": 9.0, "log": 1.5, "slope": 2.0, "square": 3.0}
    calibration = Calibration()
    calibration.load_state_dict(earlier)
    state = calibration.state_dict()
    assert {name: state[name] for name in earlier} == earlier
    scores = torch.tensor([[0.5, 0.1, 0.2], [0.0, 0.9, 0.3]])
    assert torch.equal(calibration.for_predictions(scores), 9.0 * calibration.link(scores))


def test_after_a_restart_the_running_factor_is_the_fitted_one():
    one, two = Calibration(), Calibration()
    one.update(*drawn(0, 64))
    for each in (one, two):
        each.fit(*drawn(1, 64))
        each.restart()
    assert one.state_dict() == two.state_dict()
    scores, _ = drawn(2, 8)
    assert one.running.scaling == one.held_out_scaling != NEUTRAL
    assert torch.allclose(one.before_learning(scores), one.for_predictions(scores), rtol=1e-13)


class HeldOut(list):
    """Samples of which some cannot be read; counts how often each one is."""

    def __init__(self, samples, broken=()):
        super().__init__(samples)
        self.broken, self.reads = broken, [0] * len(samples)

    def __getitem__(self, place):
        if place in self.broken:
            raise BadRecord("no image")
        self.reads[place] += 1
        return super().__getitem__(place)


def sample(number, label=None):
    label = label or LABELS[number % 3]
    return Sample(f"{label}-{number}", picture(label, number), label)


def taught(learner, count=48, size=8):
    for start in range(0, count, size):
        learner.learn(Batch(start, tuple(sample(number) for number in range(start, start + size))))
    return learner


@pytest.mark.parametrize("make", [ridge, hybrid, slda, ncm])
def test_confidences_of_predict_are_those_fitted_to_held_out_samples(make, tiny_backbone, fp32):
    learner = taught(make(tiny_backbone, fp32))
    held_out = [sample(number) for number in range(100, 130)]
    HoldoutCalibrator(learner, [HoldoutPart("held out", held_out)]).fit()
    calibration = capabilities_of(learner).calibration
    assert calibration.is_fitted
    scores = learner.calibration.link(calibration.score(calibration.read(held_out)))
    targets = torch.tensor([learner.classes.index(each.label) for each in held_out])
    factor = fitted_sharpness(scores, targets)
    scaling = fitted_scaling(*confidence_logits(factor * scores, targets))
    assert torch.equal(learner.logits(held_out), scaling.applied(factor * scores))
    before = learner.state_dict()
    other = make(tiny_backbone, fp32)
    other.load_state_dict(before)
    assert torch.equal(other.logits(held_out), learner.logits(held_out))


def test_of_held_out_samples_those_of_known_classes_are_read_once(tiny_backbone, fp32):
    learner = taught(ridge(tiny_backbone, fp32))
    held_out = HeldOut([*map(sample, range(100, 130)), *(sample(n, "eel") for n in range(5))], broken={3})
    version = 0
    calibrator = HoldoutCalibrator(learner, [HoldoutPart("held out", held_out)], lambda: version)
    calibrator.fit()
    first = list(held_out.reads)
    assert first[0] == 2, "once for its label, once for its features"
    assert (first[3], first[32]) == (0, 1)
    calibrator.fit()
    assert held_out.reads == first
    factor = learner.calibration.held_out
    del held_out[20:]
    version = 1
    calibrator.fit()
    assert learner.calibration.held_out != factor
    assert held_out.reads[0] == 3, "only listed anew"
    assert calibrator.cached_samples == 19, "what is held out no more leaves memory"


def test_features_are_read_again_once_the_adapters_have_moved(tiny_backbone, fp32):
    learner = hybrid(tiny_backbone, fp32, adapt=32)
    held_out = [HoldoutPart("held out", list(map(sample, range(100, 130))))]
    calibrator = HoldoutCalibrator(learner, held_out)
    taught(learner, 24)
    calibrator.fit()
    taught(learner, 48)
    calibrator.fit()
    fresh = HoldoutCalibrator(learner, held_out)
    factor = learner.calibration.held_out
    fresh.fit()
    assert learner.calibration.held_out == factor


@pytest.mark.parametrize("make", [ridge, hybrid, slda, ncm])
def test_held_out_samples_are_predicted_from_kept_features_bit_for_bit(make, tiny_backbone, fp32):
    learner = taught(make(tiny_backbone, fp32), 24)
    held_out = [sample(number) for number in range(100, 130)]
    calibrator = HoldoutCalibrator(learner, [HoldoutPart("held out", held_out)])
    for learned in (24, 48):
        taught(learner, learned)
        calibrator.fit()
        for some in (held_out[:7], held_out[7:]):
            assert calibrator.predict(some) == learner.predict(some)
    assert calibrator.predict([]) == ()


def test_an_evaluation_reads_only_samples_that_are_new(tiny_backbone, fp32):
    learner = taught(ridge(tiny_backbone, fp32))
    reads = []
    calibration = replace(
        capabilities_of(learner).calibration,
        read=lambda samples: reads.append(len(samples)) or (learner.features(samples),),
    )
    one = sample(100)
    same_id = replace(sample(101), id=one.id, label=one.label)
    size = learner.features([one]).nbytes
    features = HoldoutFeatures(max_bytes=2 * size)
    for _ in range(2):
        (rows,) = features.read([one, same_id, one], calibration)
        assert torch.equal(rows, learner.features([one, same_id, one]))
    assert reads == [2], "another picture of an id is another sample, the same picture twice is one"
    features.read([sample(102), one], calibration)
    features.read([sample(102)], calibration)
    assert reads == [2, 1, 1], "there is no room for a third"
    features.read([sample(102)], calibration, always_keep=True)
    features.read([sample(102)], calibration)
    assert (reads, len(features)) == ([2, 1, 1, 1], 3)
    features.keep_only({sample_key(one)})
    assert (len(features), sample_key(one) in features) == (1, True)
    features.read([same_id], calibration)
    assert len(features) == 2, "there is room again"


def test_few_held_out_samples_are_no_basis_and_many_are_thinned_out(tiny_backbone, fp32):
    learner = taught(ridge(tiny_backbone, fp32))
    few = [HoldoutPart("held out", [sample(number) for number in range(MIN_CALIBRATION_SAMPLES - 1)])]
    calibrator = HoldoutCalibrator(learner, few)
    calibrator.fit()
    assert learner.calibration.held_out is None
    assert not calibrator.fit_after_erasure()
    many = HeldOut([sample(number % 40) for number in range(MAX_CALIBRATION_SAMPLES + 1)])
    assert HoldoutCalibrator(learner, [HoldoutPart("held out", many)]).fit_after_erasure()
    assert np.count_nonzero(many.reads) == (MAX_CALIBRATION_SAMPLES + 2) // 2


def test_it_is_fitted_to_the_samples_that_are_evaluated_where_they_are_enough(tiny_backbone, fp32):
    learner = taught(ridge(tiny_backbone, fp32))
    enough = MAX_CALIBRATION_SAMPLES // 2
    for evaluated, read in ((enough, 1), (enough - 1, 2)):
        many = HeldOut([sample(number % 40) for number in range(2 * enough)])
        part = HoldoutPart("held out", many)
        calibrator = HoldoutCalibrator(learner, [part], max_per_part=evaluated)
        calibrator.fit()
        assert np.count_nonzero(many.reads) == read * enough
        if read == 1:
            evaluator = HoldoutEvaluator([part], max_per_part=evaluated, predict=calibrator.predict)
            kept = calibrator.cached_samples
            evaluator.evaluate(learner)
            assert calibrator.cached_samples == kept, "nothing is read again"


def test_a_learner_without_held_out_samples_or_classes_stays_as_it_is(tiny_backbone, fp32):
    learner = ridge(tiny_backbone, fp32)
    HoldoutCalibrator(learner, []).fit()
    HoldoutCalibrator(learner, [HoldoutPart("held out", [sample(0)])]).fit()
    assert learner.calibration.held_out is None
    assert HoldoutCalibrator(object(), []).fit_after_erasure(), "there is nothing to fit"
