"""Names go with the last sample that bears them: of classes, domains, and held-out parts named after them."""

import json

import numpy as np
import pytest
from canary_stream import BAD_ID, CANARY_CLASS, CANARY_DOMAIN, CANARY_SUBJECT, traces
from click.testing import CliRunner
from tiny_runs import configuration

from streamcl.capabilities.declaration import capabilities_of
from streamcl.cli import cli
from streamcl.evaluation.holdout_history import HoldoutHistory
from streamcl.evaluation.prequential import FORGOTTEN, Prequential
from streamcl.events import Batch, PredictionRecord
from streamcl.forgetting.erasure.erasure_plan import mentions
from streamcl.runs.open import open_run
from streamcl.sinks.best_effort import BestEffortSink
from streamcl.sinks.fanout import Fanout
from streamcl.sinks.jsonl import JsonlSink
from streamcl.sinks.redaction import MissedRedaction, RedactionTarget

COUNT = 96
REQUESTS = {
    "class": {"label": CANARY_CLASS},
    "subject": {"subject": CANARY_SUBJECT},
    "domain": {"domain": CANARY_DOMAIN},
}


def options(folder, learner="ridge", own_class=True, refused=False):
    return configuration(
        folder,
        learner=learner,
        source={"class": "canary_stream:stream", "args": {"own_class": own_class, "refused": refused}},
        max_samples=COUNT,
        sinks=[{"name": "tensorboard"}],
        evaluate={"every_samples": 32},
    )


def finished(folder, request, at=70, **more):
    """The summary of a run that forgot in its middle, and ended."""
    with open_run(options(folder, **more)) as run:
        for prediction in run:
            if prediction.offset == at:
                run.forget(**request, id="r1")
        run.finish()
    return json.loads((folder / "run" / "summary.json").read_text())


def receipt(folder):
    return json.loads((folder / "run" / "receipts" / "r1.json").read_text())


@pytest.mark.parametrize("kind", REQUESTS)
def test_no_file_of_the_run_has_a_name_of_which_no_sample_is_left(tmp_path, kind):
    """The canary is a person who is a class and a domain: each request empties all three.

    Samples of a domain that come after its request are learned, so that one comes at the end.
    """
    pytest.importorskip("tensorboard")
    summary = finished(tmp_path, REQUESTS[kind], at=COUNT - 1 if kind == "domain" else 70)
    assert receipt(tmp_path)["outcome"] == "done"
    assert traces(tmp_path, [CANARY_CLASS, CANARY_DOMAIN]) == {}
    assert CANARY_CLASS not in summary["class_names"]
    assert summary["prequential"]["support"][FORGOTTEN] > 0
    assert set(summary["holdout"]["matrix"]["parts"]) == {"ant", "bee", "cow"}
    assert CliRunner().invoke(cli, ["report", str(tmp_path / "run")]).exit_code == 0
    assert traces(tmp_path, [CANARY_CLASS, CANARY_DOMAIN]) == {}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_refused_record_of_whoever_is_forgotten_loses_its_id(tmp_path, kind):
    with open_run(options(tmp_path, refused=True)) as run:
        for prediction in run:
            if prediction.offset == COUNT - 1:
                assert set(traces(tmp_path, [BAD_ID])) >= {"run/quarantine.jsonl"}
                run.forget(**REQUESTS[kind], id="r1")
    assert traces(tmp_path, [BAD_ID]) == {}
    assert receipt(tmp_path)["scope"]["passed"] == receipt(tmp_path)["scope"]["learned"]  # it is no sample
    assert (tmp_path / "run" / "quarantine.jsonl").read_text().count("erased") == 1


def test_a_refused_record_that_comes_after_the_request_has_no_id(tmp_path):
    with open_run(options(tmp_path, refused=True)) as run:
        run.forget(**REQUESTS["subject"], id="r1")
        list(run)
    assert traces(tmp_path, [BAD_ID]) == {}


def test_a_name_that_others_bear_stays(tmp_path):
    summary = finished(tmp_path, REQUESTS["subject"], own_class=False)
    assert receipt(tmp_path)["scope"]["learned"] > 0
    assert set(summary["class_names"]) == {"ant", "bee", "cow"}
    assert "domain-0" in summary["prequential"]["per_domain"]
    assert CANARY_DOMAIN not in summary["prequential"]["per_domain"]


@pytest.mark.parametrize("learner", ["ridge", "slda", "ncm"])
def test_scores_are_those_of_a_stream_without_the_subject(tmp_path, learner):
    """Its class is no column any more: before, a column of zeros could still win.

    Too few samples are held out to fit confidences to, so it is the scores beneath them that are equal.
    """
    with open_run(options(tmp_path / "a", learner)) as run:
        predictions = list(run)
        run.forget(**REQUESTS["subject"])
        run.processor.forget()
        samples = list(run.source.fetch([p.id for p in predictions if p.label != CANARY_CLASS]))
        scores = scores_of(run.learner, samples)
        with open_run(options(tmp_path / "b", learner)) as other:
            other.learner.learn(Batch(0, tuple(samples)))
            order = [other.learner.classes.index(name) for name in run.learner.classes]
            never = scores_of(other.learner, samples)[:, order]
    assert len(run.learner.classes) == 3
    assert run.learner.calibration.held_out is None
    assert np.abs(scores - never).max() <= 1e-6 * np.abs(never).max()


def scores_of(learner, samples):
    """The scores [N, C] of samples, by weights of all that is known."""
    calibration = capabilities_of(learner).calibration
    return calibration.score(calibration.read(samples)).numpy()


def test_a_learner_that_cannot_drop_a_class_says_so(tmp_path):
    finished(tmp_path, REQUESTS["subject"], learner="naive_lora")
    places = {place["name"]: place for place in receipt(tmp_path)["locations"]}
    assert places["class names"]["status"] == "remains"


def test_a_shared_head_drops_the_row_of_a_class_that_a_subject_was(tmp_path):
    summary = finished(tmp_path, REQUESTS["subject"], learner="online_lora")
    assert CANARY_CLASS not in summary["class_names"]


@pytest.mark.parametrize(
    ("part", "name", "expected"),
    [
        ("cat", "cat", True),
        ("2 webcam", "webcam", True),
        ("webcam 0-4", "webcam", True),
        ("cat, dog", "dog", True),
        ("cats", "cat", False),
        ("part 4", "4", False),
        ("4", "4", True),
        ("a.b", "a+b", False),
    ],
)
def test_a_part_is_named_after_a_class_or_not(part, name, expected):
    assert mentions(part, name) is expected


def test_accuracy_stays_as_it_was_when_two_classes_are_forgotten():
    """A mistake between the two would otherwise become a hit under their common name."""
    scores = Prequential()
    pairs = [("ant", "ant"), ("ant", "bee"), ("bee", "ant"), ("bee", "bee"), ("cow", "ant"), ("cow", "cow")]
    scores.update([PredictionRecord(str(k), k, label, guess, 1.0) for k, (label, guess) in enumerate(pairs)])
    before = scores.accuracy, scores.samples
    for label in ("ant", "bee"):
        scores.forget_class(label)
    assert (scores.accuracy, scores.samples) == before
    assert scores.per_class == {FORGOTTEN: 0.5, "cow": 0.5}


def test_a_dropped_part_leaves_the_figures_of_the_others_as_they_are():
    with_part, without = HoldoutHistory(), HoldoutHistory()
    for offset in (10, 20, 30):
        accuracies = {"ant": offset / 50, "bee": 0.5}
        sizes = dict.fromkeys([*accuracies, "gone"], 5)
        with_part.record(offset, accuracies | {"gone": 0.9}, sizes, list(sizes), 0.6)
        without.record(offset, accuracies, sizes, list(accuracies), 0.6)
    with_part.forget_parts({"gone"})
    assert with_part.state_dict() == without.state_dict()
    assert with_part.summary() == without.summary()


class Refusing:
    """A sink of one's own that cannot redact."""

    def write(self, topic, record): ...
    def flush(self): ...
    def close(self): ...
    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...
    def redact(self, target):
        raise ConnectionError("the server is down")


def test_a_sink_that_cannot_redact_is_named_and_the_others_do(tmp_path):
    log = JsonlSink(tmp_path)
    both = Fanout({"copy": BestEffortSink(Refusing(), "copy"), "jsonl": log})
    both.write("predictions", {"offset": 1, "id": "a", "label": "gone"})
    with pytest.raises(MissedRedaction) as missed:
        both.redact(RedactionTarget({1}, {"a"}, {"gone"}))
    assert missed.value.sinks == ("copy",)
    both.close()
    assert traces(tmp_path, ["gone"]) == {}


def test_the_adapted_branch_drops_the_class_too(tmp_path):
    options_ = {"name": "ridge_lora", "lora": {"warmup_samples": 32}}
    summary = finished(tmp_path, REQUESTS["subject"], learner=options_)
    assert CANARY_CLASS not in summary["class_names"]
    assert receipt(tmp_path)["guarantee"] == "exact"
