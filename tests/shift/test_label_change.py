"""Shifts that labels show: an exact test, short parts of classes, and orders in which it says nothing."""

import json
from itertools import permutations

import numpy as np
import pytest
from detectors import reports_whole_and_restored, steady
from pictures import TINY_VIT

from streamcl.protocols import LabelShiftDetector
from streamcl.runs.open import open_run
from streamcl.shift.label_change import LabelChange, log_e_values
from streamcl.shift.plateau import PlateauDetector
from streamcl.shift.relative_rise import RelativeRiseDetector


def names(codes):
    return [f"class {code}" for code in codes]


def parts(seed, classes, *, count=5, length=(120, 330)):
    """Labels of parts with so many classes each, all new, and where the parts begin."""
    random = np.random.default_rng(seed)
    pieces = [
        part * classes + random.integers(classes, size=random.integers(*length)) for part in range(count)
    ]
    return np.concatenate(pieces), np.cumsum([len(piece) for piece in pieces])[:-1].tolist()


def shifts_found(detector, labels, batch=64):
    """Return the offsets of the batches' ends at which the detector, with steady losses, shows a shift."""
    found = []
    for start, loss in zip(range(0, len(labels), batch), steady(len(labels)), strict=False):
        detector.look_at_labels(names(labels[start : start + batch]))
        detector.update(loss)
        found += [min(start + batch, len(labels))] if detector.shift else []
    return found


@pytest.mark.parametrize("bag", ["aabbcd", "aaabbc", "abcdef", "aaaabb"])
@pytest.mark.parametrize("window", [2, 4])
def test_the_mean_e_value_over_all_orders_is_at_most_one(bag, window):
    orders = [np.array([ord(each) for each in order]) for order in permutations(bag)]
    mean = np.mean([np.exp(log_e_values(order, window)) for order in orders], axis=0)
    assert (mean <= 1 + 1e-9).all()


@pytest.mark.parametrize("classes", [2, 5, 10, 20])
@pytest.mark.parametrize("seed", range(4))
def test_short_parts_of_new_classes_are_found_within_two_batches(classes, seed):
    labels, true = parts(seed, classes)
    found = shifts_found(RelativeRiseDetector(), labels)
    assert len(found) == len(true)
    assert all(start < offset <= start + 128 for start, offset in zip(true, found, strict=True))
    assert shifts_found(RelativeRiseDetector(label_threshold=None), labels) == []


def test_classes_that_come_back_are_a_shift_too():
    random = np.random.default_rng(3)
    labels = np.concatenate([5 * (part % 2) + random.integers(5, size=200) for part in range(4)])
    found = shifts_found(RelativeRiseDetector(), labels)
    assert [offset // 200 for offset in found] == [1, 2, 3]


def frequencies(classes, power):
    share = np.arange(1, classes + 1) ** -float(power)
    return share / share.sum()


@pytest.mark.parametrize(("classes", "power"), [(2, 0), (10, 1), (200, 0), (1000, 1), (5000, 1.2)])
def test_random_orders_are_no_shift_whatever_the_frequencies(classes, power):
    labels = np.random.default_rng(classes).choice(classes, 10_000, p=frequencies(classes, power))
    assert len(shifts_found(RelativeRiseDetector(), labels)) <= 1


def test_runs_of_one_class_as_in_a_video_are_no_shift():
    random = np.random.default_rng(5)
    runs = [np.full(random.geometric(1 / 20), random.integers(12)) for _ in range(300)]
    assert len(shifts_found(RelativeRiseDetector(), np.concatenate(runs))) <= 1
    assert shifts_found(RelativeRiseDetector(), np.repeat(np.arange(60), 40)) == []  # sorted by class


def test_samples_that_come_singly_are_tested_alike():
    labels, true = parts(0, 5)
    detector, found = LabelChange(10_000), []
    for number, label in enumerate(names(labels), 1):
        detector.add([label])
        found += [number] if detector.take() else []
    assert len(found) == len(true)
    assert all(start < offset <= start + 64 for start, offset in zip(true, found, strict=True))


def test_a_shift_of_loss_and_labels_is_one():
    labels = [*np.zeros(640, int), *np.ones(640, int)]
    labels = np.array(labels) * 5 + np.random.default_rng(0).integers(5, size=1280)
    detector, found = RelativeRiseDetector(), []
    losses = [*steady(10), *[3 * loss for loss in steady(10, 1)]]
    for number, loss in enumerate(losses):
        detector.look_at_labels(names(labels[64 * number : 64 * number + 64]))
        detector.update(loss)
        found += [number] if detector.shift else []
    assert found == [10]


def test_a_short_part_is_found_before_losses_have_a_level():
    labels, true = parts(1, 3, count=2, length=(130, 140))
    found = shifts_found(RelativeRiseDetector(), labels)
    assert len(found) == 1
    assert found[0] <= true[0] + 128


def test_restored_at_every_step_it_continues_the_same():
    labels, _ = parts(2, 4, count=3)
    batches = [names(labels[start : start + 32]) for start in range(0, len(labels), 32)]
    shown, losses = [(batch[:10], batch[10:]) for batch in batches], steady(100)[: len(batches)]
    reports, again = reports_whole_and_restored(shown, losses, RelativeRiseDetector.look_at_labels)
    assert len(reports) == len(batches)
    assert reports == again
    assert sum(shift is not None for shift, _ in reports) == 2


def test_a_state_of_a_detector_that_read_no_labels_is_taken():
    old = RelativeRiseDetector(label_threshold=None)
    old.update(1.0)
    detector = RelativeRiseDetector()
    detector.load_state_dict(old.state_dict())
    assert detector.state_dict()["values"].tolist() == old.state_dict()["values"].tolist()


def knows_no_label(detector):
    state = detector.state_dict()["labels"]
    assert state.keys() == LabelChange(1).state_dict().keys()
    return len(state["labels"]) == 0


def test_no_label_is_left_once_they_are_dropped():
    detector = RelativeRiseDetector()
    shifts_found(detector, np.arange(200) % 7)
    assert not knows_no_label(detector)
    detector.drop_labels()
    assert knows_no_label(detector)


def test_only_detectors_that_read_labels_are_shown_them():
    assert isinstance(RelativeRiseDetector(), LabelShiftDetector)
    assert not isinstance(PlateauDetector(2.6, 0.03), LabelShiftDetector)
    with pytest.raises(ValueError, match="label_threshold is 0"):
        RelativeRiseDetector(label_threshold=0)


def test_a_run_finds_short_parts_and_its_detector_forgets_the_labels(tmp_path):
    settings = {
        "run_dir": str(tmp_path / "run"),
        "source": {
            "name": "demo_digits",
            "args": {"length": 150, "groups": [["0", "1"], ["2", "3"], ["4", "5"]], "domains": ["mnist"]},
        },
        "batch": 64,
        "backbone": {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY_VIT},
        "learner": {"name": "ncm", "blocks": [1]},
        "evaluate": {"every_samples": None, "at_stream_end": False, "at_part_end": False},
    }
    with open_run(settings) as run:
        list(run)
        assert run.processor.source.info.shifts == (150, 300)
        assert [offset // 150 for offset in run.processor.shift_handler.shifts] == [1, 2]
        assert not knows_no_label(run.processor.parts.detector)
        run.forget(label=run.learner.classes[0], guarantee="exact")
        run.processor.forget()
        assert knows_no_label(run.processor.parts.detector)
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    reasons = [event["reason"] for event in map(json.loads, lines) if event["kind"] == "shift"]
    assert all(reason.startswith("labels: ") for reason in reasons)
    receipt = json.loads(next((tmp_path / "run" / "receipts").glob("*.json")).read_text())
    place = next(each for each in receipt["locations"] if each["name"] == "shift detector")
    assert "begin anew" in json.dumps(place)
