"""The learner on binary keys: a sample's trace is its keys, and says all that was learned of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import make_batch
from tiny_learners import LABELS, keys, teach

from streamcl.errors import ForgettingError
from streamcl.learners.keys import pack_keys, unpack_keys


@pytest.fixture
def learner(tiny_backbone, fp32):
    return keys(tiny_backbone, fp32)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_traces_give_the_keys_back(rows, size, seed):
    drawn = 2.0 * np.random.default_rng(seed).integers(0, 16, (rows, 2 * size)) - 15
    traces = pack_keys(drawn)
    assert [len(trace) for trace in traces] == [size] * rows
    np.testing.assert_array_equal(unpack_keys(traces, 2 * size), drawn)


def traced(learner, batches=6):
    """The samples that a learner learns, with their traces."""
    kept = []
    learner.capabilities.traces.on_learned(
        lambda samples, traces: kept.extend(zip(samples, traces, strict=True))
    )
    teach(learner, batches=batches)
    return kept


def test_the_statistics_of_traces_are_those_of_the_samples(learner):
    kept = traced(learner)
    samples, traces = zip(*kept[:9], strict=True)
    of_samples = learner.statistics.of(samples)
    of_traces = learner.capabilities.traces.of_traces(traces, [sample.label for sample in samples])
    assert of_samples.relative_error(of_traces) == 0


def test_subtracting_traces_leaves_what_never_saw_the_samples(learner, tiny_backbone, fp32):
    kept = traced(learner)
    gone, stay = kept[::3], [pair for pair in kept if pair not in kept[::3]]
    value = learner.capabilities.traces.of_traces([t for _, t in gone], [s.label for s, _ in gone])
    learner.statistics.subtract(value)
    never = keys(tiny_backbone, fp32)
    never.add(
        never.features([sample for sample, _ in stay]),
        learner.index.known_columns([sample for sample, _ in stay]),
        learner.index,
    )
    probe = make_batch(900, LABELS * 3).samples
    features = learner.features(probe)
    assert torch.equal(learner.head.scores_refit(features), never.head.scores_refit(features))


def test_traces_of_others_are_refused(learner):
    kept = traced(learner)
    traces = learner.capabilities.traces
    with pytest.raises(ForgettingError, match="not of 64 keys"):
        traces.of_traces([kept[0][1][:-1]], [kept[0][0].label])
    with pytest.raises(ForgettingError, match="not among those learned"):
        traces.of_traces([kept[0][1]], ["a class that never came"])


def test_a_listener_that_fails_leaves_nothing_learned(learner):
    before = learner.state_dict()["classes"]

    def full(samples, traces):
        raise OSError("the disk is full")

    learner.capabilities.traces.on_learned(full)
    with pytest.raises(OSError, match="full"):
        teach(learner, batches=1)
    assert learner.state_dict()["classes"] == before
