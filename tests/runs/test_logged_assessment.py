"""`answer: {log: true}`: stability and novelty in predictions.jsonl and in the report, and after a resume."""

import json
import re

import pytest
from pictures import make_batch
from tiny_runs import configuration

from streamcl.events import Batch, Preview
from streamcl.forgetting.receipts.archive import newest_receipt, read_receipt
from streamcl.report.page import write_report
from streamcl.runs.open import open_run

SOURCE = {"class": "indexed_pictures:IndexedPictures", "args": {"mislabelled_every": 3}}
LEARNERS = {
    "ridge": "ridge",
    "ridge_lora": {"name": "ridge_lora", "lora": {"warmup_samples": 32}},
    "latents": {"name": "ridge_lora", "lora": {"warmup_samples": 32}, "latents": {"budget": "1MB"}},
}


@pytest.fixture(params=LEARNERS)
def learner(request):
    return LEARNERS[request.param]


def options(folder, learner, log=True, **more):
    return configuration(folder, learner, source=SOURCE, max_samples=96, answer={"log": log}, **more)


def run_to_end(config):
    with open_run(config) as run:
        list(run)
        run.finish()
    return run.folder


def records(folder, topic="predictions"):
    return [json.loads(line) for line in (folder / f"{topic}.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_predictions_are_the_same_with_stability_and_novelty_beside_them(tmp_path, learner):
    plain = records(run_to_end(options(tmp_path / "plain", learner, log=False)))
    logged = records(run_to_end(options(tmp_path / "logged", learner)))
    known = [each for each in logged if "stability" in each]
    assert len(known) > 64
    assert all(0 <= each["stability"] <= 1 and each["novelty"] >= 0 for each in known)
    assert len({each["stability"] for each in known}) > 8
    assert plain == [
        {name: value for name, value in each.items() if name not in ("stability", "novelty")}
        for each in logged
    ]
    first_step = min(each["step"] for each in known)
    assert all("stability" in each for each in logged if each["step"] >= first_step)


def test_the_mean_of_each_batch_is_among_its_figures(tmp_path, learner):
    folder = run_to_end(options(tmp_path, learner))
    predictions = records(folder)
    for step in records(folder, "metrics"):
        if step["kind"] == "step":
            stable = [
                each["stability"]
                for each in predictions
                if each["step"] == step["step"] and "stability" in each
            ]
            if stable:
                assert step["flip_probability"] == pytest.approx(1 - sum(stable) / len(stable))
            else:
                assert "flip_probability" not in step


@pytest.mark.long
def test_a_run_that_was_stopped_goes_on_with_the_same_bytes(tmp_path, learner):
    straight = run_to_end(options(tmp_path / "straight", learner))
    config = options(tmp_path / "stopped", learner)
    with open_run(config) as run:
        for seen, _ in enumerate(run):
            if seen == 40:
                run.stop()
    with open_run(config) as run:
        assert 0 < run.processor.progress.offset < 96
        list(run)
        run.finish()
    assert (run.folder / "predictions.jsonl").read_bytes() == (straight / "predictions.jsonl").read_bytes()


def test_it_can_be_set_and_unset_while_a_run_goes_on(tmp_path):
    with open_run(options(tmp_path, "ridge", log=False)) as run:
        for seen, _ in enumerate(run):
            if seen == 40:
                run.stop()
    folder = run_to_end(options(tmp_path, "ridge"))
    logged = records(folder)
    assert len(logged) == 96
    assert "stability" not in logged[40]
    assert "stability" in logged[-1]


def test_predictions_after_an_erasure_have_them(tmp_path):
    with open_run(options(tmp_path, "ridge")) as run:
        stream = iter(run)
        for _ in range(48):
            next(stream)
        request = run.forget(label="ant")
        list(stream)
        run.finish()
    assert read_receipt(newest_receipt(run.folder, request)).outcome == "done"
    assert all("stability" in each for each in records(run.folder)[-16:])


def test_samples_that_are_only_predicted_have_them(tmp_path):
    with open_run(options(tmp_path, "ridge")) as run:
        stream = iter(run)
        for _ in range(32):
            next(stream)
        samples = make_batch(9000, ["ant", "bee", "ant"]).samples
        made = run.processor.process(Preview(Batch(run.processor.progress.offset, samples)))
        assert all(0 <= each.stability <= 1 and each.novelty >= 0 for each in made)
        learner = run.learner
        assert [each.predicted for each in made] == [each.label for each in learner.predict(samples)]


def test_a_learner_that_cannot_compute_them_says_so_and_goes_on(tmp_path, caplog):
    folder = run_to_end(options(tmp_path, "slda"))
    assert "answer.log has no effect" in caplog.text
    assert not any("stability" in each for each in records(folder))


def test_the_report_shows_what_is_worth_a_look_and_nothing_of_it_otherwise(tmp_path):
    page = write_report(run_to_end(options(tmp_path / "logged", "ridge"))).read_text()
    assert "Worth a look" in page
    assert "Stability over the stream" in page
    assert len(re.findall(r"<td>least stable</td>", page)) == 6
    assert len(re.findall(r"<td>most novel</td>", page)) == 6
    plain = write_report(run_to_end(options(tmp_path / "plain", "ridge", log=False))).read_text()
    assert "Worth a look" not in plain
    assert "Stability over the stream" not in plain
