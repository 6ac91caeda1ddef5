"""Shifts that the loss does not feel: how far batches lie from those before, in features that do not move."""

import json

import numpy as np
import pytest
from detectors import reports_whole_and_restored, steady
from pictures import TINY_VIT

from streamcl.protocols import FeatureShiftDetector
from streamcl.runs.open import open_run
from streamcl.shift.novelty import Novelty
from streamcl.shift.plateau import PlateauDetector
from streamcl.shift.relative_rise import RelativeRiseDetector


def batches(count, size, width=40, *, moved=0.0, alike=0.0, seed=0):
    """Features [size, width] of each batch, their mean moved; `alike` is how much neighbours share."""
    random = np.random.default_rng(seed)
    scale = random.uniform(0.1, 10, width)
    for _ in range(count):
        shared = alike * random.normal(size=width)
        yield (scale * (random.normal(size=(size, width)) + shared + moved)).astype(np.float32)


def shifts_found(detector, features, losses):
    """Return the numbers of the updates that show a shift."""
    found = []
    for number, (rows, loss) in enumerate(zip(features, losses, strict=True)):
        detector.look(rows)
        detector.update(loss)
        found += [number] if detector.shift else []
    return found


def knows_nothing(detector):
    state = detector.state_dict()["novelty"]
    assert state.keys() == Novelty().state_dict().keys()
    return not any(np.size(value) for value in state.values() if isinstance(value, np.ndarray)) and not any(
        state[name] for name in ("count", "waiting", "variance")
    )


@pytest.mark.parametrize(("size", "width"), [(2, 100), (16, 3), (64, 40)])
def test_it_is_about_one_while_nothing_changes(size, width):
    novelty, found = Novelty(), []
    for rows in batches(200, size, width):
        novelty.add(rows)
        found.append(novelty.take())
    assert found[0] is None  # nothing to be held against
    assert np.mean(found[40:]) == pytest.approx(1.0, abs=0.25)


def test_small_batches_are_gathered_and_one_sample_waits():
    one, other = Novelty(), Novelty()
    for rows in batches(30, 16):
        for row in rows:
            one.add(row[None])
        other.add(rows)
        found, expected = one.take(), other.take()
        assert found == pytest.approx(expected) if found is not None else expected is None
    one.add(rows[:1])
    assert one.take() is None
    one.add(rows[1:2])
    assert one.take() is not None


def test_what_never_varies_says_nothing():
    novelty = Novelty()
    for _ in range(5):
        novelty.add(np.ones((8, 4), np.float32))
        assert novelty.take() is None


@pytest.mark.parametrize("alike", [0.0, 1.0])
def test_a_shift_that_the_loss_does_not_feel_is_found(alike):
    features = [*batches(40, 16, alike=alike), *batches(40, 16, moved=2.0, alike=alike, seed=0)]
    found = shifts_found(RelativeRiseDetector(), features, steady(80))
    assert len(found) == 1
    assert 40 < found[0] <= 48
    assert shifts_found(RelativeRiseDetector(feature_threshold=None), features, steady(80)) == []


def test_the_reason_speaks_of_features_and_a_new_segment_may_settle():
    detector = RelativeRiseDetector()
    features = [*batches(40, 16), *batches(30, 16, moved=2.0)]
    reasons, plateaus = [], []
    for number, (rows, loss) in enumerate(zip(features, steady(70), strict=True)):
        detector.look(rows)
        detector.update(loss)
        reasons += [detector.shift] if detector.shift else []
        plateaus += [number] if detector.plateau else []
    assert reasons
    assert reasons[0].startswith("features lie")
    assert "standard errors" in reasons[0]
    assert any(number > 40 for number in plateaus)


@pytest.mark.long
@pytest.mark.parametrize("alike", [0.0, 1.0])
def test_false_alarms_are_rare(alike):
    alarms = sum(
        len(
            shifts_found(
                RelativeRiseDetector(), list(batches(300, 16, 64, alike=alike, seed=seed)), steady(300, seed)
            )
        )
        for seed in range(4)
    )
    alone = sum(
        len(shifts_found(RelativeRiseDetector(feature_threshold=None), [()] * 300, steady(300, seed)))
        for seed in range(4)
    )
    assert alarms <= alone + 1  # of 1,200 batches


def test_a_rise_of_both_is_one_shift():
    features = [*batches(40, 16), *batches(40, 16, moved=2.0)]
    losses = [*steady(40), *[3 * loss for loss in steady(40, 1)]]
    assert len(shifts_found(RelativeRiseDetector(), features, losses)) == 1


def test_restored_at_every_step_it_goes_on_the_same():
    features, losses = [*batches(30, 16), *batches(20, 16, moved=2.0)], steady(50)
    shown = [(rows[:5], rows[5:]) for rows in features]
    said, again = reports_whole_and_restored(shown, losses, RelativeRiseDetector.look)
    assert said == again
    assert any(shift for shift, _ in said)


def test_a_state_from_before_there_was_novelty_is_taken():
    old = RelativeRiseDetector(feature_threshold=None)
    for loss in steady(20):
        old.update(loss)
    detector = RelativeRiseDetector()
    detector.load_state_dict(old.state_dict())
    assert detector.state_dict()["values"].tolist() == old.state_dict()["values"].tolist()


def test_nothing_of_any_features_is_left_once_they_are_dropped():
    detector = RelativeRiseDetector()
    shifts_found(detector, list(batches(20, 16)), steady(20))
    detector.look(next(iter(batches(1, 16))))
    detector.drop_features()
    assert knows_nothing(detector)
    assert (
        shifts_found(detector, list(batches(40, 16, moved=5.0)), steady(40)) == []
    )  # held against nothing before


def test_detectors_that_only_take_losses_are_not_shown_features():
    assert isinstance(RelativeRiseDetector(), FeatureShiftDetector)
    assert not isinstance(PlateauDetector(2.6, 0.03), FeatureShiftDetector)
    with pytest.raises(ValueError, match="feature_threshold is 0"):
        RelativeRiseDetector(feature_threshold=0)


def test_a_run_forgets_what_its_detector_knew_of_features(tmp_path):
    settings = {
        "run_dir": str(tmp_path / "run"),
        "source": "demo_digits",
        "scenario": "iid",
        "max_samples": 192,
        "backbone": {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY_VIT},
        "learner": {"name": "ridge", "blocks": [0, 1]},
        "evaluate": {"every_samples": None, "at_stream_end": False, "at_part_end": False},
    }
    with open_run(settings) as run:
        list(run)
        known = run.processor.parts.detector.state_dict()["novelty"]
        assert len(known["means"]) > 1
        run.forget(label=run.learner.classes[0], guarantee="exact")
        run.processor.forget()
        assert knows_nothing(run.processor.parts.detector)
    receipt = json.loads(next((tmp_path / "run" / "receipts").glob("*.json")).read_text())
    place = next(each for each in receipt["locations"] if each["name"] == "shift detector")
    assert "begin anew" in json.dumps(place)
