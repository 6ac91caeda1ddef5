"""`answer: {live_work: ...}`: what is only predicted uses fewer blocks, what is learned all of them."""

import json
from dataclasses import replace

import pytest
from indexed_pictures import PICTURE_SOURCE
from pictures import make_batch
from tiny_runs import configuration

from streamcl.capabilities.declaration import capabilities_of
from streamcl.errors import ConfigError
from streamcl.events import Batch, Preview
from streamcl.runs.open import open_run


def options(folder, learner="ridge", share=0.5, **more):
    return configuration(
        folder, learner, source=PICTURE_SOURCE, max_samples=96, answer={"live_work": share}, **more
    )


@pytest.fixture(params=["ridge", "ridge_lora"])
def run(request, tmp_path):
    learner = {"name": "ridge_lora", "lora": {"warmup_samples": 32}}
    with open_run(options(tmp_path, "ridge" if request.param == "ridge" else learner)) as opened:
        yield opened


def logged(run):
    run.processor.commit()
    lines = (run.folder / "predictions.jsonl").read_text().splitlines()
    return {each["id"]: each for each in map(json.loads, lines)}


def samples_after(run):
    return make_batch(run.processor.progress.offset, ["ant", "bee", "ant", "bee"]).samples


def test_records_at_arrival_are_predicted_at_the_deepest_exit_within_the_share(run):
    list(run)
    samples, offset = samples_after(run), run.processor.progress.offset
    exits = capabilities_of(run.learner).early_exit
    walk, count = exits.begin(samples), 0
    while sum(exits.costs[: count + 1]) <= 0.5:
        walk.advance(walk.exits.argsort())
        count += 1
    assert 1 <= count < len(exits.costs)
    made = run.processor.process(Preview(Batch(offset, samples)))
    names = run.learner.classes
    assert [each.predicted for each in made] == [names[row.argmax()] for row in walk.logits]
    assert {each.work for each in made} == {round(sum(exits.costs[:count]), 4)}
    assert {logged(run)[each.id]["work"] for each in made} == {each.work for each in made}


def test_a_batch_of_an_overload_is_shortened_and_one_that_is_learned_is_not(run):
    list(run)
    samples, offset = samples_after(run), run.processor.progress.offset
    shortened = run.processor.process(Batch(offset, samples, predict_only=True))
    assert all(0 < each.work <= 0.5 for each in shortened)
    assert run.processor.overload.predicted_only == len(samples)
    fresh = tuple(replace(each, id=f"fresh-{each.id}") for each in samples)
    counts = _counts(run)
    learned = run.processor.process(Batch(offset + len(samples), fresh))
    assert {each.work for each in learned} == {None}
    assert all("work" not in logged(run)[each.id] for each in learned)
    assert _counts(run) == counts + len(fresh)


def _counts(run):
    head = getattr(run.learner, "exact", run.learner).head
    return sum(head.counts)


def test_without_overload_and_arrivals_the_bytes_are_those_without_the_option(tmp_path):
    found = []
    for share in (None, 0.5):
        with open_run(options(tmp_path / str(share), share=share)) as run:
            list(run)
            run.finish()
        found.append((run.folder / "predictions.jsonl").read_bytes())
    assert found[0] == found[1]


def test_a_share_below_the_first_exit_and_learners_without_exits_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"less than the first exit takes 0\.3"):
        open_run(options(tmp_path / "small", share=0.1))
    with pytest.raises(ConfigError, match="no exits"):
        open_run(options(tmp_path / "slda", "slda"))
