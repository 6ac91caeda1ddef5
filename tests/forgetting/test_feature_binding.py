"""An erasure is called exact only where features are those that were learned."""

import json

import numpy as np
import pytest
from forgetting_fakes import ForgettingLearner, Opened, RowsLearner

from streamcl.events import ForgetRequest, Sample
from streamcl.forgetting.lineage.feature_binding import FeatureBinding
from streamcl.forgetting.lineage.lineage_row import LineageRow
from streamcl.testing import ScriptedSource, record_id

IMAGE = np.zeros((2, 2, 3), np.uint8)
SCHEDULE = [ForgetRequest(ids=[record_id(k) for k in (2, 9, 11)], offset=16, id="r1")]


class DriftingRows(RowsLearner):
    """Derives other rows when it forgets than when it learned, as after an upgrade of a library."""

    def __init__(self, share):
        super().__init__()
        self.share, self.learning = share, False

    def learn(self, batch):
        self.learning = True
        try:
            return super().learn(batch)
        finally:
            self.learning = False

    def rows_of(self, samples):
        (rows,) = super().rows_of(samples)
        return (rows if self.learning else rows * (1 + self.share),)


def receipt_of(folder, learner):
    with Opened(folder, ScriptedSource([4] * 6), learner=learner, schedule=SCHEDULE) as opened:
        opened.run()
    return json.loads((folder / "receipts" / "r1.json").read_text())


@pytest.mark.parametrize("share", [1e-3, 1e-4, float("nan")])
def test_an_erasure_with_other_features_than_were_learned_is_not_called_exact(tmp_path, share):
    learner = DriftingRows(share)
    receipt = receipt_of(tmp_path, learner)
    assert receipt["outcome"] == "failed"
    assert "from those that were learned" in receipt["reason"] or "derived twice" in receipt["reason"]
    assert learner.gram[0, 0] == 24, "nothing was subtracted"


@pytest.mark.parametrize("share", [0.0, 1e-8])
def test_the_receipt_says_how_far_features_are_from_those_that_were_learned(tmp_path, share):
    receipt = receipt_of(tmp_path, DriftingRows(share))
    assert (receipt["outcome"], receipt["guarantee"]) == ("done", "exact"), receipt
    assert receipt["figures"]["features_compared"] == 3
    assert share / 5 <= receipt["figures"]["feature_drift"] <= 5 * share
    assert "the features of 3 differ by at most" in receipt["residual"]


def test_a_learner_whose_features_are_not_recorded_is_said_to_be_one(tmp_path):
    receipt = receipt_of(tmp_path, ForgettingLearner())
    assert receipt["guarantee"] == "exact"
    assert "which is not recorded" in receipt["residual"]


@pytest.mark.parametrize(
    ("eigenvalue", "rounding", "outcome"),
    [
        (1 - 1e-8, 0.0, "failed"),
        (float("nan"), 1.0, "failed"),
        (1 - 1e-10, 0.0, "done"),
        (1.5, 0.0, "done"),
        (1 - 1e-8, 2e-8, "done"),
        (1 - 1e-7, 2e-8, "failed"),
    ],
)
def test_an_impossible_remainder_is_not_called_exact(tmp_path, eigenvalue, rounding, outcome):
    found = {"smallest_eigenvalue_over_lambda": eigenvalue, "rounding_over_lambda": rounding}

    class Figures(RowsLearner):
        def subtract(self, value):
            return {**super().subtract(value), **found}

    receipt = receipt_of(tmp_path, Figures())
    assert receipt["outcome"] == outcome
    assert outcome == "done" or "smallest eigenvalue" in receipt["reason"]


class TestProjections:
    def samples(self, count):
        return [Sample(f"s{k}", IMAGE, "a") for k in range(count)]

    def bound(self, binding, rows):
        samples = self.samples(len(rows[0]))
        binding.add(samples, rows)
        taken = binding.take(samples)
        return [LineageRow(k, f"s{k}", "a", True, 0, b"", features=each) for k, each in enumerate(taken)]

    def test_every_small_change_of_any_row_is_seen(self):
        rng, binding = np.random.default_rng(0), FeatureBinding(b"key")
        rows = rng.normal(size=(50, 300))
        bound = self.bound(binding, [rows])
        assert binding.drift(bound, [rows]).largest == 0
        for number in range(50):
            changed = rows.copy()
            changed[number] += 1e-3 * np.linalg.norm(rows[number]) / np.sqrt(300) * rng.normal(size=300)
            assert binding.drift(bound, [changed]).largest > 1e-5

    def test_projections_depend_on_the_key_and_on_the_head(self):
        rows = np.random.default_rng(0).normal(size=(4, 8))
        taken = [self.bound(FeatureBinding(key), [rows, rows]) for key in (b"one", b"two")]
        assert taken[0][0].features != taken[1][0].features
        numbers = np.frombuffer(taken[0][0].features)
        assert len(numbers) == 4
        assert set(numbers[:2]).isdisjoint(numbers[2:])

    def test_a_head_that_is_gone_or_was_never_bound_is_left_out(self):
        rows, binding = np.ones((3, 5)), FeatureBinding(b"key")
        bound = self.bound(binding, [rows, None])
        assert binding.drift(bound, [rows]).largest == 0
        assert binding.drift(bound, [rows, 2 * rows]).largest == 0
        assert binding.drift(bound, [2 * rows]).largest > 1e-5
        mixed = [*bound, *self.bound(binding, [rows])]
        assert binding.drift(mixed, [np.ones((6, 5)), np.ones((6, 5))]) == binding.drift(
            mixed, [np.ones((6, 5))]
        )
        assert binding.drift([], []).compared == 0
        assert np.isnan(binding.drift(bound, [rows * np.nan]).largest)
        assert np.isnan((binding.drift(bound, [rows * np.nan]) + binding.drift(bound, [rows])).largest)

    def test_samples_that_were_not_learned_have_none_and_nothing_is_left_over(self):
        binding, samples = FeatureBinding(b"key"), self.samples(3)
        binding.add(samples[:2], [np.ones((2, 5))])
        taken = binding.take(samples)
        assert [each is None for each in taken] == [False, False, True]
        assert binding.take(samples) == [None] * 3
