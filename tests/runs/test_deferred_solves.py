"""`defer_solve` of a learner: what is predicted depends on the stream, also of a run that was killed."""

import json
import math

import pytest
from pictures import make_batch
from tiny_runs import configuration

from streamcl.heads.ridge import RidgeHead
from streamcl.learners.adapted_branch import AdaptedBranch
from streamcl.learners.ridge import RidgeLearner
from streamcl.learners.ridge_lora import RidgeLoRALearner
from streamcl.runs.open import open_run
from streamcl.storage.plain_state import state_hash

LEARNERS = {
    "ridge": {"name": "ridge", "defer_solve": 40},
    "slda": {"name": "slda", "defer_solve": 40},
    "keys": {"name": "keys", "keys": 64, "defer_solve": 40},
    "ridge_lora": {"name": "ridge_lora", "ridge": {"defer_solve": 40}, "lora": {"warmup_samples": 32}},
    "mixed_privacy": {
        "name": "mixed_privacy",
        "ridge": {"defer_solve": 40},
        "lora": {"warmup_samples": 32},
        "users": {"tangents": 8},
    },
}
SOURCE = {"class": "fault_sources:Pictures", "args": {"records": 160}}
EAGER = [*list(LEARNERS)[:1], *(pytest.param(name, marks=pytest.mark.long) for name in list(LEARNERS)[1:])]


def options(folder, learner):
    return configuration(folder, learner, source=SOURCE, batch=8, checkpoint={"every_samples": 16})


def run_to_end(config):
    with open_run(config) as run:
        list(run)
        run.finish()
        return run.folder, run.learner.state_dict()


def labels(folder):
    records = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return [each["predicted"] for each in records], [each["label"] for each in records]


@pytest.mark.parametrize("name", EAGER)
def test_a_run_that_was_abandoned_anywhere_goes_on_with_the_same_bytes(tmp_path, name):
    straight, state = run_to_end(options(tmp_path / "straight", LEARNERS[name]))
    config = options(tmp_path / "broken", LEARNERS[name])
    for records in (24, 88, 60):
        with open_run(config) as run:
            for seen, _ in enumerate(run):
                if seen == records:
                    break  # nothing is committed here
    folder, found = run_to_end(config)
    assert (folder / "predictions.jsonl").read_bytes() == (straight / "predictions.jsonl").read_bytes()
    assert state_hash(found) == state_hash(state)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("ridge", 0, 8), pytest.param("slda", 32, 80, marks=pytest.mark.long)],
    ids=["by the factor of the last solve", "by another rule"],
)
def test_how_much_later_than_without_a_class_is_predicted(tmp_path, name, least, most):
    deferred, true = labels(run_to_end(options(tmp_path / "deferred", LEARNERS[name]))[0])
    at_once, _ = labels(run_to_end(options(tmp_path / "at_once", name))[0])
    late = [next(i for i, label in enumerate(made) if label == "cat") for made in (at_once, deferred)]
    assert late[0] + least <= late[1] <= late[0] + most
    assert sum(a == b for a, b in zip(deferred[140:], true[140:], strict=True)) >= 18


def test_an_exact_request_leaves_nothing_pending(tmp_path):
    with open_run(options(tmp_path, LEARNERS["ridge"])) as run:
        for seen, _ in enumerate(run):
            if seen == 100:
                break
        assert "pending" in run.learner.state_dict()["head"]
        run.forget(label="cat", guarantee="exact")
        run.processor.forget()
        assert "pending" not in run.learner.state_dict()["head"]
        assert "cat" not in run.learner.classes


@pytest.mark.parametrize("deferring", [(20, 20), (20, None), (None, 20)])
def test_a_branch_that_does_not_know_a_class_yet_spoils_no_score(tiny_backbone, fp32, deferring):
    exact, adapted = (
        RidgeHead(width * 64, variance_ridge=3.0, defer_solve=defer)
        for width, defer in zip((3, 2), deferring, strict=True)
    )
    blocks = (0, 1, 2)
    learner = RidgeLoRALearner(
        RidgeLearner(tiny_backbone, fp32, exact, blocks=blocks),
        AdaptedBranch(tiny_backbone, fp32, adapted, blocks=blocks, first_block=1, warmup_samples=16),
    )
    for start in range(0, 96, 8):
        names = ["ant", "bee"] if start < 40 else ["cat", "dog"]
        result = learner.learn(make_batch(start, names * 4))
        assert result.learned
        assert all(map(math.isfinite, result.losses))
        assert all(0 <= each.confidence <= 1 for each in result.predictions)
    assert result.predictions[0].label is not None
