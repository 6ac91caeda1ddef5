"""`predict --budget`, a share of the work on average, and `predict --deadline-ms`."""

import json

import pytest
from indexed_pictures import PICTURE_SOURCE
from pictures import picture
from PIL import Image
from tiny_runs import call, configuration

from streamcl.errors import ConfigError
from streamcl.events import Sample
from streamcl.runs.early_prediction import BudgetedPredictor, DeadlinePredictor
from streamcl.runs.learner import load_run, rank_classes
from streamcl.runs.open import open_run

CLASSES = ("ant", "bee")
SAMPLES = [Sample(f"{n}", picture(CLASSES[n % 2], 6000 + n)) for n in range(24)]


def finished(folder, learner="ridge", hold_out="40%"):
    source, evaluate = PICTURE_SOURCE, {"hold_out": hold_out}
    with open_run(
        configuration(folder, learner=learner, source=source, max_samples=None, evaluate=evaluate)
    ) as run:
        list(run)
        run.finish()
    return run.folder


@pytest.fixture(params=["ridge", "ridge_lora"])
def loaded(request, tmp_path):
    learner = {"name": "ridge_lora", "lora": {"warmup_samples": 32}}
    return load_run(finished(tmp_path, "ridge" if request.param == "ridge" else learner))


def test_the_work_stays_within_the_budget_and_all_of_it_is_predict(loaded):
    held = [each for part in loaded.held_out for each in part.samples]
    for budget in (0.5, 0.75):
        predictor = BudgetedPredictor(loaded, budget)
        costs = [each.cost for each in predictor.predict(held, 1)]
        assert sum(costs) / len(costs) <= budget + 1e-9
        assert predictor.plan.expected_cost == pytest.approx(sum(costs) / len(costs), abs=0.05)
    everything = BudgetedPredictor(loaded, 1.0).predict(SAMPLES, 2)
    assert [each.ranked for each in everything] == rank_classes(loaded.learner, SAMPLES, 2)
    assert all(each.cost == pytest.approx(1) for each in everything)


def test_a_budget_below_the_first_exit_is_refused(loaded):
    with pytest.raises(ConfigError, match="less than the first exit takes"):
        BudgetedPredictor(loaded, 0.01)


def test_predict_gives_the_work_of_each_image(tmp_path):
    run = finished(tmp_path)
    for number in range(2):
        Image.fromarray(SAMPLES[number].image).save(tmp_path / f"{number}.png")
    code, output = call("predict", run, tmp_path / "0.png", tmp_path / "1.png", "--budget", "60%", "--json")
    answers = [json.loads(line) for line in output.splitlines()]
    assert code == 0
    assert [each["class"] for each in answers] == ["ant", "bee"]
    assert all(0 < each["work"] <= 1 and "stability" not in each for each in answers)
    assert call("predict", run, tmp_path / "0.png", "--budget", "0.6")[0] == 0


@pytest.mark.parametrize("budget", ["0", "150%", "half", "5%5"])
def test_what_is_no_share_is_refused(budget, tmp_path):
    code, output = call("predict", tmp_path, "x.png", "--budget", budget)
    assert code == 2, output


@pytest.mark.long
def test_learners_without_exits_and_runs_that_hold_nothing_out_are_refused(tmp_path):
    for name, learner, hold_out in (("slda", "slda", "40%"), ("none", "ridge", 0)):
        loaded = load_run(finished(tmp_path / name, learner, hold_out), fitted=True)
        with pytest.raises(ConfigError, match="no exits" if learner == "slda" else "holds out"):
            BudgetedPredictor(loaded, 0.5)


# --- by a deadline ----------------------------------------------------------------------------------


class Clock:
    """Moves on by some seconds whenever it is read."""

    def __init__(self, seconds):
        self.now, self.seconds = 0.0, seconds

    def __call__(self):
        self.now += self.seconds
        return self.now


def test_with_time_enough_a_deadline_gives_predict_and_without_the_first_exit(loaded):
    predictor = DeadlinePredictor(loaded.learner, clock=Clock(1.0))
    predictor.measure(SAMPLES)
    found = predictor.predict(SAMPLES, 2, 1e6)
    assert [each.ranked for each in found] == rank_classes(loaded.learner, SAMPLES, 2)
    assert all(each.cost == pytest.approx(1) for each in found)
    assert predictor.missed == 0
    found = predictor.predict(SAMPLES, 2, 0.5)
    assert {each.exit for each in found} == {0}
    assert predictor.missed == 1
    assert predictor.most_late > 0
    assert predictor.predict([], 1, 0.0) == []


def test_predict_says_how_many_deadlines_were_missed(tmp_path):
    run = finished(tmp_path)
    Image.fromarray(SAMPLES[0].image).save(tmp_path / "0.png")
    code, output = call("predict", run, tmp_path / "0.png", "--deadline-ms", "0.001", "--json")
    assert code == 0
    lines = output.splitlines()
    assert json.loads(lines[0])["work"] < 1
    assert "the deadline was missed 1 times, at most by" in lines[1]
    code, output = call("predict", run, tmp_path / "0.png", "--deadline-ms", "1e9", "--json")
    assert json.loads(output)["work"] == 1
    code, output = call("predict", run, tmp_path / "0.png", "--deadline-ms", "5", "--budget", "50%")
    assert code == 2
    assert "exclude each other" in output


def test_learners_without_exits_have_no_deadline(tmp_path):
    loaded = load_run(finished(tmp_path, "slda"), fitted=True)
    with pytest.raises(ConfigError, match="no exits"):
        DeadlinePredictor(loaded.learner)
