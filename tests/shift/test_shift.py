"""Every detector fires where the script says and once a segment, refuses NaN, and resumes bit by bit."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.errors import ConfigError
from streamcl.registry import DETECTORS
from streamcl.shift.detector import build_detector
from streamcl.shift.plateau import PlateauDetector
from streamcl.shift.relative_rise import RelativeRiseDetector
from streamcl.shift.river import RiverDetector
from streamcl.testing import check_detector
from streamcl.testing.detector_checks import loss_stream

MAKERS = {
    "relative_rise": RelativeRiseDetector,
    "plateau": lambda: PlateauDetector(2.6, 0.03),
    "none": lambda: build_detector("none"),
    "ADWIN": lambda: RiverDetector("ADWIN", {"min_window_length": 3, "clock": 4}),
    "PageHinkley": lambda: RiverDetector("PageHinkley", {"threshold": 3.0, "min_instances": 10}),
    "KSWIN": lambda: RiverDetector("KSWIN", {"window_size": 30, "stat_size": 10, "alpha": 1e-4}),
    "DummyDriftDetector": lambda: RiverDetector("DummyDriftDetector", {"t_0": 30}),
}
every_detector = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def stream(seed=0, segments=(40, 50, 40)):
    """Segments that fall and jump back up; and where they begin."""
    return np.array(loss_stream(seed, segments)), np.cumsum(segments)[:-1].tolist()


def reports_of(detector, losses):
    said = []
    for loss in losses:
        detector.update(float(loss))
        said.append((detector.shift, detector.plateau))
    return said


def shifts(said):
    return [i for i, (shift, _) in enumerate(said) if shift]


def plateaus(said):
    return [i for i, (_, plateau) in enumerate(said) if plateau]


def remembered(detector):
    return len(detector.state_dict()["history"])


def plain(state):
    return json.dumps(state, default=np.ndarray.tolist)


# --- every detector -------------------------------------------------------------------------------


@every_detector
def test_every_detector_keeps_its_promises(make):
    check_detector(make)


STORMS = {
    "spikes of a million": lambda rng, n: np.where(rng.random(n) < 0.2, 1e6, 1.0) * rng.random(n),
    "constant": lambda rng, n: np.full(n, 2.0),
    "zero": lambda rng, n: np.zeros(n),
    "doubling": lambda rng, n: 2.0 ** np.minimum(np.arange(n), 200),
    "see-saw": lambda rng, n: np.where(np.arange(n) % 2, 9.0, 0.1),
    "square wave": lambda rng, n: np.where(np.arange(n) // 4 % 2, 9.0, 0.1),
    "negative": lambda rng, n: -rng.random(n),
}


@pytest.mark.parametrize("storm", STORMS.values(), ids=STORMS.keys())
def test_no_storm_of_consolidations(storm):
    said = reports_of(RelativeRiseDetector(), storm(np.random.default_rng(0), 400))
    assert len(plateaus(said)) <= 1 + len(shifts(said))
    assert min(np.diff([-10, *plateaus(said)]), default=10) >= 10
    assert min(np.diff(shifts(said)), default=8) >= 8


# --- relative -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scale", [0.1, 1.0, 50.0])
def test_relative_fires_at_the_shifts_once_a_segment_at_any_scale(seed, scale):
    losses, true = stream(seed)
    said = reports_of(RelativeRiseDetector(), losses * scale)
    found = shifts(said)
    assert len(found) == len(true)
    assert all(t < f <= t + 5 for t, f in zip(true, found, strict=True))
    bounds = [0, *found, len(losses)]
    found = plateaus(said)
    assert [sum(a <= p < b for p in found) for a, b in pairwise(bounds)] == [1, 1, 1]


@pytest.mark.long
@settings(max_examples=40, deadline=None)
@given(st.integers(20, 80), st.floats(3, 1e6))
def test_one_bad_batch_is_no_shift_and_three_in_a_row_are(at, factor):
    noise = np.exp(np.random.default_rng(3).uniform(-0.1, 0.1, 100))
    quiet = (0.1 + 0.9 * np.exp(-np.arange(100) / 10)) * noise
    one, three = quiet.copy(), quiet.copy()
    one[at] *= factor
    three[at : at + 3] *= factor
    assert shifts(reports_of(RelativeRiseDetector(), one)) == []
    assert shifts(reports_of(RelativeRiseDetector(), three))[0] in (at + 1, at + 2)


@pytest.mark.long
def test_a_slow_rise_and_a_falling_loss_are_no_shift():
    alarms = 0
    for seed in range(4):
        noise = np.exp(0.1 * np.random.default_rng(seed).standard_normal(500))
        alarms += len(shifts(reports_of(RelativeRiseDetector(), np.linspace(1, 1.3, 500) * noise)))
        alarms += len(shifts(reports_of(RelativeRiseDetector(), 3 / np.sqrt(1 + np.arange(500)) * noise)))
    assert alarms <= 4  # in 256,000 samples at batches of 64: a sixth of the one per 10,000 that is allowed


def test_no_plateau_while_the_loss_falls():
    steep = 5 * 0.9 ** np.arange(40)
    assert plateaus(reports_of(RelativeRiseDetector(), steep)) == []
    assert plateaus(reports_of(RelativeRiseDetector(), [*steep, *[steep[-1]] * 10])) != []


def test_relative_says_why():
    losses, true = stream()
    said = reports_of(RelativeRiseDetector(), losses)
    assert "standard errors" in said[shifts(said)[0]][0]
    assert "no more of a fall" in said[plateaus(said)[0]][1]
    assert true


# --- the paper's rule -----------------------------------------------------------------------------


def test_the_papers_rule_step_by_step():
    detector = PlateauDetector(mean_threshold=1.0, variance_threshold=0.008, window=3)
    losses = [0.5, 0.5, 0.5, 0.5, 0.5, 0.7, 0.9, 0.9, 0.9, 0.9, 0.9]
    said = reports_of(detector, losses)
    # a window of one loss has no variance: nothing before the third; the start counts as a shift
    assert shifts(said) == [5]  # mean 0.567 > 0.5 + 0
    assert plateaus(said) == [2, 8]  # variances at 5 to 8: 0.0089, 0.0267, 0.0089, 0


def test_the_variance_is_the_populations():
    losses = [0.0, 0.1, 0.2]  # population variance 0.00667, sample variance 0.01
    assert plateaus(reports_of(PlateauDetector(1.0, 0.008, window=3), losses)) == [2]


def test_a_rise_within_the_last_plateaus_deviation_is_no_shift():
    losses = [0.4, 0.6, 0.4, 0.6, *[0.55] * 4]  # plateau: mean 0.5, deviation 0.1
    assert shifts(reports_of(PlateauDetector(1.0, 0.1, window=4), losses)) == []
    assert shifts(reports_of(PlateauDetector(1.0, 0.1, window=4), [*losses[:4], *[0.65] * 4])) == [6]


def test_a_window_of_one_is_refused():
    with pytest.raises(ValueError, match="no variance"):
        PlateauDetector(1.0, 0.1, window=1)
    with pytest.raises(ValueError, match="positive"):
        RelativeRiseDetector(loss_threshold=0)


# --- River ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ADWIN", "PageHinkley", "KSWIN"])
def test_rivers_rises_are_shifts_and_falls_are_not(name):
    rng = np.random.default_rng(0)
    step = np.where(np.arange(240) < 120, 0.5, 4.0) + 0.1 * rng.random(240)
    said = reports_of(MAKERS[name](), step)
    assert shifts(said)[0] in range(120, 140)
    assert shifts(said) == plateaus(said)
    assert shifts(reports_of(MAKERS[name](), step[::-1])) == []


def test_rivers_history_is_bounded_and_resumes_across_the_bound():
    rng = np.random.default_rng(0)
    losses = rng.random(9000)
    one, two = RiverDetector("ADWIN"), None
    for i, loss in enumerate(losses):
        one.update(float(loss))
        if i in (4000, 4095, 4096):
            two = RiverDetector("ADWIN")
            two.load_state_dict(one.state_dict())
        elif two is not None:
            two.update(float(loss))
            assert (one.shift, remembered(one)) == (two.shift, remembered(two))
        assert remembered(one) < 4096
    assert plain(one.state_dict()) == plain(two.state_dict())


@pytest.mark.parametrize(
    ("name", "args", "said", "hint"),
    [
        ("ADWINN", {}, "no drift detector 'ADWINN'", "ADWIN"),
        ("DDM", {}, "errors \\(0 or 1\\), not losses", "ADWIN"),
        ("ADWIN", {"dleta": 0.1}, "no argument 'dleta'", "delta"),
        ("KSWIN", {"alpha": 7}, "cannot be made", None),
    ],
)
def test_a_wrong_river_detector_is_refused_with_the_nearest_name(name, args, said, hint):
    with pytest.raises(ConfigError, match=said) as caught:
        RiverDetector(name, args)
    assert hint is None or hint in caught.value.hint


# --- by name --------------------------------------------------------------------------------------


def test_detectors_are_built_by_name():
    assert isinstance(build_detector("relative_rise", loss_threshold=5.0), RelativeRiseDetector)
    assert isinstance(build_detector("plateau", mean_threshold=2.6, variance_threshold=0.03), PlateauDetector)
    assert isinstance(build_detector("river", name="ADWIN", args={"delta": 0.1}), RiverDetector)
    assert DETECTORS.names()[:4] == ("relative_rise", "plateau", "river", "none")


@pytest.mark.parametrize(
    ("name", "args", "said", "hint"),
    [
        ("relative_ris", {}, "no detector 'relative_ris'", "relative_rise"),
        ("relative_rise", {"loss_treshold": 3}, "no argument 'loss_treshold'", "loss_threshold"),
        ("plateau", {}, "needs the argument 'mean_threshold'", None),
        ("relative_rise", {"loss_threshold": -1}, "cannot be made", None),
        ("none", {"window": 3}, "no argument", "it takes: none"),
    ],
)
def test_a_wrong_detector_is_refused_with_the_nearest_name(name, args, said, hint):
    with pytest.raises(ConfigError, match=said) as caught:
        build_detector(name, **args)
    assert hint is None or hint in caught.value.hint


def test_a_plugins_detector_is_found_by_its_entry_point(monkeypatch):
    from importlib.metadata import EntryPoint

    point = EntryPoint("mine", "streamcl.shift.relative_rise:RelativeRiseDetector", "streamcl.detectors")
    monkeypatch.setattr("streamcl.registry.entry_points", lambda group: [point])
    assert isinstance(build_detector("mine"), RelativeRiseDetector)
    assert DETECTORS.names()[-1] == "mine"
