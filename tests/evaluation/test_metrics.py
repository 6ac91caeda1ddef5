"""Metrics against definitions written out by hand, across restarts, and within bounded memory."""

from __future__ import annotations

import json
import math
import random
from collections import deque
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.evaluation.holdout_history import HoldoutHistory
from streamcl.evaluation.prequential import Prequential
from streamcl.evaluation.shift_matching import match_shifts
from streamcl.evaluation.throughput import Throughput, memory_mb, peak_memory_mb
from streamcl.events import PredictionRecord

labels = st.sampled_from(["cat", "dog", "<b>", ""])
outcomes = st.lists(st.tuples(st.none() | labels, st.none() | labels, st.sampled_from([None, "a", "b"])))


def said(pairs: list[tuple[str | None, str | None, str | None]]) -> list[PredictionRecord]:
    return [PredictionRecord(str(i), i, label, guess, 0.5) for i, (label, guess, _) in enumerate(pairs)]


def fed(pairs: list[tuple[str | None, str | None, str | None]], window: int = 5) -> Prequential:
    metric = Prequential(window)
    metric.update(said(pairs), [domain for _, _, domain in pairs])
    return metric


def through_json(state: Any) -> Any:
    return json.loads(json.dumps(state, allow_nan=False))


def share(hits: list[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


class TestPrequential:
    @given(outcomes)
    def test_equals_plain_counting(self, pairs):
        metric = fed(pairs)
        hits = [(label, label == guess, domain) for label, guess, domain in pairs if label is not None]
        assert metric.samples == len(hits)
        assert metric.accuracy == share([hit for _, hit, _ in hits])
        assert metric.window_accuracy == share([hit for _, hit, _ in hits][-5:])
        for label, accuracy in metric.per_class.items():
            assert accuracy == share([hit for name, hit, _ in hits if name == label])
        for domain in ("a", "b"):
            assert metric.per_domain.get(domain) == share([hit for _, hit, name in hits if name == domain])

    @given(outcomes, outcomes)
    def test_a_restart_changes_nothing(self, before, after):
        straight, resumed = fed(before), Prequential(5)
        resumed.load_state_dict(through_json(straight.state_dict()))
        for metric in (straight, resumed):
            metric.update(said(after), [domain for _, _, domain in after])
        assert resumed.summary() == straight.summary()
        assert resumed.state_dict() == straight.state_dict()

    @given(outcomes)
    def test_a_forgotten_class_is_named_no_more_and_every_figure_stays(self, pairs):
        metric, whole = fed(pairs), fed(pairs)
        metric.forget_class("cat")
        assert "cat" not in json.dumps(metric.state_dict())
        stays = ("accuracy", "window_accuracy", "samples", "per_domain")
        assert [metric.summary()[name] for name in stays] == [whole.summary()[name] for name in stays]
        assert metric.support.get("(forgotten)") == whole.support.get("cat")
        assert metric.per_class.get("(forgotten)") == whole.per_class.get("cat")

    @given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1))
    def test_calibration_error_is_that_of_the_definition(self, made):
        metric, bins = Prequential(), [[] for _ in range(15)]
        for offset, (confidence, right) in enumerate(made):
            metric.update([PredictionRecord("i", offset, "a", "a" if right else "b", confidence)])
            bins[min(int(15 * confidence), 14)].append((confidence, right))
        apart = [
            abs(fmean(c for c, _ in each) - fmean(r for _, r in each)) * len(each) for each in bins if each
        ]
        assert metric.calibration_error == pytest.approx(sum(apart) / len(made), abs=1e-12)

    def test_a_confidence_that_is_none_is_left_out_of_the_calibration_error(self):
        metric = Prequential()
        assert metric.calibration_error is None
        metric.update(
            [PredictionRecord("i", 0, "a", "a", math.nan), PredictionRecord("j", 1, "a", "b", 0.75)]
        )
        assert metric.calibration_error == 0.75

    def test_unlabelled_is_not_counted_and_no_guess_is_wrong(self):
        metric = fed([(None, "cat", None), ("cat", None, None)])
        assert (metric.samples, metric.accuracy) == (1, 0.0)

    def test_before_the_first_label_there_is_no_accuracy(self):
        assert Prequential().accuracy is None
        assert Prequential().window_accuracy is None

    def test_mistakes_and_domains_are_bounded_and_still_counted(self):
        metric, draw = Prequential(50, max_domains=3, max_pairs=200), random.Random(0)
        for step in range(5000):
            label, guess = str(draw.randrange(2000)), str(draw.randrange(2000))
            metric.update([PredictionRecord("i", step, label, guess, 0.1)], [f"d{step % 10}"])
        off_diagonal = [cell for cell in metric.state_dict()["confusion"] if cell[0] != cell[1]]
        itemised = [cell for cell in off_diagonal if cell[1] is not None]
        assert len(itemised) == 200
        assert metric.samples == sum(metric.support.values()) == 5000
        assert len(metric.per_domain) == 4
        assert sum(metric.summary()["domain_support"].values()) == 5000

    def test_domains_must_match_predictions(self):
        with pytest.raises(ValueError, match="shorter"):
            Prequential().update(said([("a", "a", None)]), [])

    def test_window_of_nothing_is_refused(self):
        with pytest.raises(ValueError, match="at least 1"):
            Prequential(0)


def history(rows: list[tuple[int, list[float], int]], max_rows: int = 200) -> HoldoutHistory:
    """Rows of (offset, accuracy of parts p0.., how many of them are taught); all parts are of one size."""
    result = HoldoutHistory(max_rows)
    for offset, accuracies, taught in rows:
        parts = {f"p{i}": accuracy for i, accuracy in enumerate(accuracies)}
        result.record(offset, parts, dict.fromkeys(parts, 10), list(parts)[:taught])
    return result


class TestHoldoutHistory:
    ROWS = ((100, [0.9, 0.2, 0.0], 1), (200, [0.7, 0.8, 0.1], 2), (300, [0.6, 0.9, 0.5], 3))

    def test_the_figures_by_hand(self):
        figures = history(list(self.ROWS))
        now, area = (0.6 + 0.9 + 0.5) / 3, (0.9 + 0.75 + 2.0 / 3) / 3
        assert (figures.A_T, figures.A_Last, figures.A_AUC) == pytest.approx((now, now, area))
        assert figures.forgetting_measure == pytest.approx(((0.9 - 0.6) + (0.8 - 0.9)) / 2)
        assert figures.backward_transfer == pytest.approx(((0.6 - 0.9) + (0.9 - 0.8)) / 2)
        assert figures.matrix["accuracy"] == [row for _, row, _ in self.ROWS]

    def test_parts_weigh_by_size_in_a_last_and_alike_in_a_t(self):
        figures = HoldoutHistory()
        figures.record(10, {"a": 1.0, "b": 0.0}, {"a": 30, "b": 10}, ["a", "b"])
        assert (figures.A_T, figures.A_Last) == (0.5, 0.75)

    def test_accuracy_over_seen_classes_may_come_from_outside(self):
        figures = HoldoutHistory()
        figures.record(10, {"a": 1.0, "b": 0.0}, {"a": 30, "b": 10}, ["a"], 0.6)
        figures.record(20, {"a": 1.0, "b": 0.0}, {"a": 30, "b": 10}, ["a"], 0.4)
        assert (figures.A_T, figures.A_Last, figures.A_AUC) == (1.0, 0.4, 0.5)

    def test_what_is_not_taught_does_not_count(self):
        figures = history([(100, [0.5, 0.0], 1)])
        assert (figures.A_T, figures.A_Last, figures.A_AUC) == (0.5, 0.5, 0.5)
        assert figures.forgetting_measure is None
        assert figures.backward_transfer is None

    def test_a_part_first_evaluated_as_taught_at_the_end_has_forgotten_nothing_yet(self):
        figures = history([(100, [0.5, 0.9, 0.0], 1), (200, [0.3, 0.1, 0.6], 3)])
        assert figures.forgetting_measure == pytest.approx(0.2)
        assert figures.backward_transfer == pytest.approx(-0.2)

    def test_nothing_taught_yet(self):
        figures = history([(100, [0.1, 0.1], 0)])
        assert (figures.A_T, figures.A_Last, figures.A_AUC) == (None, None, None)
        assert HoldoutHistory().summary()["matrix"] == {"offsets": [], "parts": [], "accuracy": []}

    def test_an_offset_counts_once_and_never_falls(self):
        figures = history([(100, [0.5], 1), (100, [0.9], 1)])
        assert figures.A_Last == figures.A_AUC == 0.9
        with pytest.raises(ValueError, match="after one at 100"):
            figures.record(99, {}, {}, [])

    def test_a_part_measured_late_leaves_a_gap(self):
        figures = HoldoutHistory()
        figures.record(1, {"a": 0.5}, {"a": 1}, ["a"])
        figures.record(2, {"a": 0.5, "b": 0.4}, {"a": 1, "b": 1}, ["a", "b"])
        assert figures.matrix["accuracy"] == [[0.5, None], [0.5, 0.4]]

    @settings(max_examples=30)
    @given(
        st.lists(
            st.tuples(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.booleans()),
            min_size=5,
            max_size=25,
        )
    )
    def test_thinning_and_restarts_change_no_figure(self, evaluations):
        rows, taught = [], 0
        for step, (accuracies, more) in enumerate(evaluations):
            taught = min(3, taught + more)
            rows.append((step, accuracies, taught))
        whole, thinned = history(rows), history(rows, max_rows=8)
        resumed = HoldoutHistory(8)
        for offset, accuracies, count in rows:
            again = HoldoutHistory(8)
            again.load_state_dict(through_json(resumed.state_dict()))
            resumed = again
            parts = {f"p{i}": accuracy for i, accuracy in enumerate(accuracies)}
            resumed.record(offset, parts, dict.fromkeys(parts, 10), list(parts)[:count])
        full, short = whole.summary(), thinned.summary()
        assert resumed.summary() == short
        assert len(short["matrix"]["offsets"]) <= 8
        assert short["matrix"]["offsets"][-1:] == full["matrix"]["offsets"][-1:]
        assert {k: v for k, v in short.items() if k != "matrix"} == {
            k: v for k, v in full.items() if k != "matrix"
        }

    def test_a_long_matrix_is_thinned_and_keeps_milestones(self):
        rows = [(step, [0.01 * step % 1, 0.5, 0.5], 1 + (step >= 7) + (step >= 31)) for step in range(100)]
        whole, thinned = history(rows).summary(), history(rows, max_rows=12).summary()
        kept = thinned.pop("matrix")
        assert whole.pop("matrix")["offsets"] == list(range(100))
        assert thinned == whole
        assert len(kept["offsets"]) <= 12
        assert {0, 7, 31, 99} <= set(kept["offsets"])
        assert all(kept["accuracy"][i] == rows[offset][1] for i, offset in enumerate(kept["offsets"]))

    def test_too_few_rows_is_refused(self):
        with pytest.raises(ValueError, match="at least 4"):
            HoldoutHistory(3)


class TestMatchShifts:
    def test_found_missed_and_false(self):
        score = match_shifts([1000, 2000, 3000], [500, 1064, 1100, 2999, 3000], tolerance=500)
        assert score.matches == ((1000, 1064), (2000, None), (3000, 3000))
        assert score.false_offsets == (500, 1100, 2999)
        assert (score.found, score.missed, score.false_alarms, score.delays) == (2, 1, 3, (64, 0))
        assert score.summary()["detected"] == [500, 1064, 1100, 2999, 3000]

    @pytest.mark.parametrize(("alarm", "found"), [(1999, 1), (2000, 0)])
    def test_a_detection_answers_the_latest_shift_only(self, alarm, found):
        assert match_shifts([1000, 2000], [alarm], tolerance=5000).matches[0][1] == (alarm if found else None)

    @pytest.mark.parametrize(("alarm", "found"), [(1100, 1), (1101, 0)])
    def test_the_tolerance_is_inclusive(self, alarm, found):
        assert match_shifts([1000], [alarm], tolerance=100).found == found

    @given(st.lists(st.integers(0, 300)), st.lists(st.integers(0, 300)), st.integers(0, 100))
    def test_every_detection_is_counted_once(self, true, detected, tolerance):
        score = match_shifts(true, detected, tolerance)
        assert score.found + score.missed == len(set(true))
        assert score.found + score.false_alarms == len(detected)
        assert score.summary()["detected"] == sorted(detected)
        assert all(0 <= delay <= tolerance for delay in score.delays)

    def test_no_truth_makes_every_detection_a_false_alarm(self):
        assert match_shifts([], [5], 10).false_alarms == 1


class TestThroughput:
    def test_rate_over_the_window_and_the_run(self):
        times = deque([0.0, 1.0, 2.0, 4.0, 4.0])
        speed = Throughput(times.popleft, window=1)
        assert speed.images_per_s is None
        for images in (10, 10, 10):
            speed.update(images)
        assert speed.images_per_s == 5.0
        assert speed.mean_images_per_s == 7.5

    def test_time_between_processes_is_not_counted(self):
        first = Throughput(deque([100.0, 110.0, 110.0]).popleft)
        first.update(50)
        state = through_json(first.state_dict())
        second = Throughput(deque([7.0, 9000.0, 9005.0, 9005.0]).popleft)
        second.load_state_dict(state)
        second.update(50)
        assert (second.images, second.seconds) == (100, 15.0)

    def test_memory_is_read_in_mebibytes(self):
        assert 5 < memory_mb() < 100_000
        assert peak_memory_mb() >= 0.5 * memory_mb()
        assert math.isfinite(peak_memory_mb())
