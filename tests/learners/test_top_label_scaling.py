"""Slope and offset of the predicted class's confidence: likeliest, and never another class."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.evaluation.reliability import ReliabilityBins
from streamcl.learners.top_label_scaling import (
    NEUTRAL,
    PRIOR,
    RunningScaling,
    TopLabelScaling,
    confidence_logits,
    fitted_scaling,
)

LOGITS = st.lists(st.floats(-60, 60) | st.just(-math.inf), min_size=2, max_size=6)


def drawn(seed, count, scaling=NEUTRAL, classes=10):
    """Logits [N, C], and targets of which those of the predicted class are as frequent as a scaling says."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    chances = scaling.applied(logits).softmax(dim=1)
    return logits, torch.multinomial(chances, 1, generator=generator)[:, 0]


def calibration_error(logits, targets):
    bins = ReliabilityBins()
    sure, column = logits.softmax(dim=1).max(dim=1)
    for confidence, right in zip(sure.tolist(), (column == targets).tolist(), strict=True):
        bins.add(confidence, right=right)
    return bins.calibration_error


@settings(max_examples=300, deadline=None, derandomize=True)
@given(LOGITS, st.floats(-5, 5), st.floats(-20, 20), st.booleans())
def test_the_predicted_class_stays_in_single_precision_too(row, slope, offset, close):
    logits = torch.tensor([row], dtype=torch.float64)
    if close:
        logits = logits.where(~logits.isfinite(), 1e-5 * logits)
    scaled = TopLabelScaling(slope, offset).applied(logits)
    assert int(scaled.float().softmax(dim=1).max(dim=1).indices) == int(
        logits.float().softmax(dim=1).max(dim=1).indices
    )
    assert torch.equal(scaled.isfinite(), logits.isfinite())


def test_the_other_classes_keep_their_ratios_and_the_confidence_is_the_one_stated():
    logits, _ = drawn(0, 40)
    before, after = logits.softmax(dim=1), TopLabelScaling(1.5, 0.7).applied(logits).softmax(dim=1)
    column = logits.argmax(dim=1)[:, None]
    expected = (1.5 * before.max(dim=1).values.logit() + 0.7).sigmoid()
    assert torch.allclose(after.max(dim=1).values, expected)
    rest = [each.scatter(1, column, 0.0) for each in (before, after)]
    assert torch.allclose(*(each / each.sum(dim=1, keepdim=True) for each in rest))


def test_rows_without_two_finite_logits_stay_as_they_are():
    rows = torch.tensor([[1.0, -math.inf], [-math.inf, -math.inf], [math.nan, 1.0]])
    assert torch.equal(TopLabelScaling(2.0, 1.0).applied(rows).nan_to_num(), rows.nan_to_num())
    one = torch.tensor([[3.0]])
    assert torch.equal(TopLabelScaling(2.0, 1.0).applied(one), one)
    own, right = confidence_logits(rows, torch.zeros(3, dtype=torch.int64))
    assert len(own) == len(right) == 0
    assert fitted_scaling(own, right) == NEUTRAL


@pytest.mark.parametrize("made", [TopLabelScaling(0.5, -0.5), TopLabelScaling(1.6, 0.8)])
def test_the_numbers_that_made_the_labels_are_found(made):
    logits, targets = drawn(1, 4000, made)
    found = fitted_scaling(*confidence_logits(logits, targets))
    assert found == pytest.approx(made, abs=0.15)
    assert calibration_error(found.applied(logits), targets) < 0.025 < calibration_error(logits, targets)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.integers(1, 60), st.sampled_from([1e-3, 1.0, 30.0]))
def test_the_fit_is_a_minimum(seed, count, unit):
    logits, targets = drawn(seed, count, classes=4)
    own, right = confidence_logits(unit * logits, targets)
    found = fitted_scaling(own, right)

    def loss(slope, offset):
        scaled = slope * own + offset
        data = torch.nn.functional.binary_cross_entropy_with_logits(scaled, right, reduction="sum")
        return float(data) + PRIOR / 2 * ((slope - 1) ** 2 + offset**2)

    for step in (0.1, 1e-3):
        for slope, offset in ((step, 0), (-step, 0), (0, step), (0, -step)):
            assert loss(*found) <= loss(found.slope + slope, found.offset + offset)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert fitted_scaling(own[order], right[order]) == pytest.approx(found, rel=1e-10)


def test_few_samples_that_are_all_right_change_confidences_little():
    logits, _ = drawn(3, 4)
    found = fitted_scaling(*confidence_logits(logits, logits.argmax(dim=1)))
    assert found == pytest.approx(NEUTRAL, abs=0.6)


@pytest.mark.parametrize("size", [1, 8, 64])
def test_running_numbers_follow_a_stream(size):
    running, made = RunningScaling(), []
    logits, targets = drawn(4, 2048, TopLabelScaling(0.5, -0.5))
    for start in range(0, 2048, size):
        part, labels = logits[start : start + size], targets[start : start + size]
        made.append(running.scaling.applied(part))
        running.update(part, labels)
    assert calibration_error(torch.cat(made), targets) < 0.05 < calibration_error(logits, targets)


def test_a_state_and_a_savepoint_restore_the_running_numbers():
    running, other = RunningScaling(), RunningScaling()
    running.update(*drawn(5, 64, TopLabelScaling(0.5, 0.0)))
    state, undo = running.state_dict(), running.savepoint()
    running.update(*drawn(6, 64))
    assert running.state_dict() != state
    undo()
    assert running.state_dict() == state
    other.load_state_dict(state)
    for each in (running, other):
        each.update(*drawn(7, 64))
    assert running.state_dict() == other.state_dict()
