"""A predictor answers by the newest snapshot of a run, and by none that has been removed."""

import io
import time

import pytest
from PIL import Image
from stored_data import stored_bytes
from tiny_runs import configuration

from streamcl.runs.open import open_run
from streamcl.serving.prediction.predictor import NoModel, Predictor
from streamcl.storage.snapshots import SNAPSHOTS, Snapshots, list_snapshots, load_snapshot, newest_info


@pytest.fixture
def serving(tmp_path):
    """An open run that publishes what it learns, and its directory."""
    folder = tmp_path / "run"
    with open_run(configuration(tmp_path), snapshots=Snapshots(folder / SNAPSHOTS)) as run:
        yield run, folder


def encoded(sample):
    file = io.BytesIO()
    Image.fromarray(sample.image).save(file, "PNG")
    return file.getvalue()


def learn(run, until):
    for prediction in run:
        if prediction.offset >= until:
            run.processor.commit()
            return


def test_it_answers_as_the_learner_does_and_says_which_version_it_was(serving):
    run, folder = serving
    learn(run, 79)
    samples = run.source.info.holdout[0].samples[:3]
    predictor = Predictor(folder)
    predictor.refresh()
    reply = predictor.predict([encoded(each) for each in samples], top_k=3)
    expected = run.learner.predict(samples)
    rows = [each.classes for each in reply.results]
    assert [ranked[0][0] for ranked in rows] == [each.label for each in expected]
    assert [ranked[0][1] for ranked in rows] == pytest.approx([e.confidence for e in expected], abs=1e-4)
    assert all(len(ranked) == 3 and ranked[0][1] >= ranked[1][1] >= ranked[2][1] for ranked in rows)
    assert all((each.exit, each.work) == (None, None) for each in reply.results)
    assert (reply.model.offset, reply.model) == (
        run.processor.progress.offset,
        newest_info(folder / SNAPSHOTS),
    )


@pytest.mark.parametrize(
    "learner",
    [
        {"name": "er", "replay_size": 40, "first_block": 1},
        {"name": "ridge_lora", "latents": {"budget": "1MB", "first_samples": 40}},
    ],
    ids=lambda learner: learner["name"],
)
def test_what_the_learner_stores_of_samples_is_in_no_snapshot(tmp_path, learner):
    folder = tmp_path / "run"
    with open_run(configuration(tmp_path, learner), snapshots=Snapshots(folder / SNAPSHOTS)) as run:
        learn(run, 79)
        samples = run.source.info.holdout[0].samples[:3]
        expected = run.learner.predict(samples)
        assert stored_bytes(run.learner.state_dict()) > 0
    predictor = Predictor(folder)
    predictor.refresh()
    answers = predictor.predict([encoded(each) for each in samples], top_k=1).results
    assert [each.classes[0][0] for each in answers] == [each.label for each in expected]
    assert all(stored_bytes(load_snapshot(each).state) == 0 for each in list_snapshots(folder / SNAPSHOTS))


def test_an_image_that_cannot_be_read_leaves_the_others_their_answers(serving):
    run, folder = serving
    learn(run, 79)
    predictor = Predictor(folder)
    predictor.refresh()
    good = encoded(run.source.info.holdout[0].samples[0])
    bomb = io.BytesIO()
    Image.new("1", (20_001, 10)).save(bomb, "PNG")
    first, bad, large, last = predictor.predict([good, b"no image", bomb.getvalue(), good]).results
    assert first == last
    assert "not an image" in bad
    assert "a side may have 20000" in large


def test_it_goes_on_to_a_newer_snapshot(serving):
    run, folder = serving
    learn(run, 39)
    predictor = Predictor(folder)
    predictor.refresh()
    before = predictor.model
    learn(run, 119)
    newest, deadline = newest_info(folder / SNAPSHOTS), time.monotonic() + 60
    while predictor.model != newest and time.monotonic() < deadline:
        predictor.refresh()  # never waits: the model in use answers while the next is loaded
        time.sleep(0.01)
    assert predictor.model == newest
    assert newest.offset > before.offset


def test_after_an_erasure_nothing_older_answers(serving):
    run, folder = serving
    learn(run, 119)
    predictor = Predictor(folder)
    predictor.refresh()
    before = predictor.model
    run.forget(label="4", guarantee="exact")
    run.processor.forget()
    assert len(list_snapshots(folder / SNAPSHOTS)) == 1
    predictor.refresh()
    assert predictor.model.number > before.number
    sample = run.source.info.holdout[0].samples[0]
    (found,) = predictor.predict([encoded(sample)], top_k=100).results
    assert "4" not in dict(found.classes)
    (receipt,) = (folder / "receipts").glob("*.json")
    assert '"snapshots for serving"' in receipt.read_text()


def test_an_erasure_by_a_run_that_publishes_nothing_removes_them_all(tmp_path):
    folder = tmp_path / "run"
    with open_run(configuration(tmp_path), snapshots=Snapshots(folder / SNAPSHOTS)) as run:
        learn(run, 79)
    with open_run(configuration(tmp_path)) as run:
        run.forget(label="4")
        run.processor.forget()
    assert list_snapshots(folder / SNAPSHOTS) == []
    predictor = Predictor(folder, timeout=0.0)
    with pytest.raises(NoModel):
        predictor.refresh()


@pytest.mark.parametrize("has_deadlines", [True, False], ids=["prepared", "first image with a deadline"])
def test_an_image_whose_deadline_is_past_has_the_first_exit_and_one_with_time_all_blocks(
    serving, has_deadlines
):
    run, folder = serving
    learn(run, 79)
    images = [encoded(each) for each in run.source.info.holdout[0].samples[:5]]
    predictor = Predictor(folder, has_deadlines=has_deadlines)
    predictor.refresh()
    plain = predictor.predict(images).results
    late = predictor.predict(images, deadline=time.monotonic()).results
    assert {each.exit for each in late} == {1}
    assert all(0 < each.work < 1 for each in late)
    in_time = predictor.predict([*images, b"no image"], deadline=time.monotonic() + 1e6).results
    assert [each.classes for each in in_time[:5]] == [each.classes for each in plain]
    assert {each.work for each in in_time[:5]} == {1.0}
    assert isinstance(in_time[5], str)
    learn(run, 119)
    newest = newest_info(folder / SNAPSHOTS)
    end = time.monotonic() + 60
    while predictor.model != newest and time.monotonic() < end:
        predictor.refresh()
        time.sleep(0.01)
    assert predictor.predict(images, deadline=time.monotonic()).model == newest


def test_a_learner_without_exits_takes_its_time(tmp_path):
    folder = tmp_path / "run"
    with open_run(configuration(tmp_path, "slda"), snapshots=Snapshots(folder / SNAPSHOTS)) as run:
        learn(run, 79)
        image = encoded(run.source.info.holdout[0].samples[0])
    predictor = Predictor(folder)
    predictor.refresh()
    late = predictor.predict([image], deadline=time.monotonic()).results
    assert late == predictor.predict([image]).results
    assert late[0].exit is None
