"""What a receipt says of the use of the model: the same held-out samples before and after an erasure."""

from dataclasses import replace

import numpy as np
import pytest
from pictures import picture

from streamcl.config.load import config_from_dict
from streamcl.errors import SourceError
from streamcl.events import Batch, ForgetRequest, HoldoutPart, Sample
from streamcl.factory.parts import build_learner
from streamcl.forgetting.monitoring.utility import UtilityProbe

LABELS = ("ant", "bee", "cat")


def samples(count, start=0):
    return [Sample(f"{n}", picture(LABELS[n % 3], n), LABELS[n % 3]) for n in range(start, start + count)]


NOBODY = ForgetRequest(id="r", ids=("nobody",))


def taught(name, backbone, compute):
    config = config_from_dict({"source": "demo_digits", "learner": name, "seed": 3})
    learner = build_learner(config, backbone, compute)
    for start in range(0, 96, 8):
        learner.learn(Batch(start, tuple(samples(8, start))))
    return learner


@pytest.mark.parametrize(
    "name",
    [
        {"name": "ridge", "blocks": [0, 1]},
        {"name": "ridge_lora", "lora": {"warmup_samples": 48}},
        "online_lora",
    ],
)
def test_accuracy_before_and_after_is_what_predictions_give(name, tiny_backbone, fp32):
    learner = taught(name, tiny_backbone, fp32)
    held = samples(30, 500)
    useful = UtilityProbe([HoldoutPart("all", held)]).before(learner, ForgetRequest(id="r", label="cat"))
    assert [sample.label for sample in useful.held_out.samples] == ["ant", "bee"] * 10
    left = [sample for sample in held if sample.label != "cat"]
    named = [guess.label for guess in learner.predict(left)]
    before = [name == sample.label for name, sample in zip(named, left, strict=True)]
    if (drop := learner.capabilities.drop_adapted_branch) is not None:
        drop()
    if (statistics := learner.capabilities.statistics) is not None:
        statistics.subtract(statistics.of([sample for sample in samples(96) if sample.label == "cat"]))
    learner.drop_class("cat")
    after = [guess.label == sample.label for guess, sample in pairs(learner, left)]
    changed = sum(guess.label != name for guess, name in zip(learner.predict(left), named, strict=True))
    told = useful.after(learner, 32)
    figures = {"samples": 20, "before": np.mean(before), "after": np.mean(after), "changed": changed}
    assert told == figures
    assert told["after"] > 0.5


def pairs(learner, held):
    return zip(learner.predict(held), held, strict=True)


def test_samples_are_looked_at_once_where_no_erasure_changes_their_features(tiny_backbone, fp32, monkeypatch):
    learner = taught({"name": "ridge", "blocks": [0, 1]}, tiny_backbone, fp32)
    useful = UtilityProbe([HoldoutPart("all", samples(30, 500))]).before(learner, NOBODY)
    monkeypatch.setattr(type(learner), "features", lambda *_: pytest.fail("looked at again"))
    assert useful.after(learner, 32)["samples"] == 30


@pytest.mark.parametrize(
    "name", [{"name": "ridge", "blocks": [0, 1]}, {"name": "ridge_lora", "lora": {"warmup_samples": 48}}]
)
def test_what_was_prepared_before_anything_was_learned_tells_the_same(name, tiny_backbone, fp32):
    parts, request = [HoldoutPart("all", samples(30, 500))], ForgetRequest(id="r", label="cat")
    config = config_from_dict({"source": "demo_digits", "learner": name, "seed": 3})
    learner, early = build_learner(config, tiny_backbone, fp32), UtilityProbe(parts)
    early.prepare(learner)
    for start in range(0, 96, 8):
        learner.learn(Batch(start, tuple(samples(8, start))))
    before, fresh = early.before(learner, request), UtilityProbe(parts).before(learner, request)
    assert not any(sample.image.size for sample in before.held_out.samples)
    assert before.before == fresh.before
    if hasattr(learner, "drop_adapted"):
        assert before.held_out.reading.adapted is not None
        learner.drop_adapted()
    cats = [sample for sample in samples(96) if sample.label == "cat"]
    learner.statistics.subtract(learner.statistics.of(cats))
    learner.drop_class("cat")
    assert before.after(learner, 0) == fresh.after(learner, 0)


class Counted(list):
    """Samples, and how many of them have been read."""

    read = 0

    def __getitem__(self, place):
        self.read += 1
        return super().__getitem__(place)


def test_features_of_a_subject_who_is_erased_are_not_kept(tiny_backbone, fp32):
    learner = taught({"name": "ridge", "blocks": [0, 1]}, tiny_backbone, fp32)
    held = [replace(sample, subject=f"s{n % 5}") for n, sample in enumerate(samples(30, 500))]
    counted = Counted(held)
    utility = UtilityProbe([HoldoutPart("all", counted)])
    utility.prepare(learner)
    assert counted.read == 30
    assert len(utility.before(learner, ForgetRequest(id="r", subject="other")).held_out.samples) == 30
    assert len(utility.before(learner, ForgetRequest(id="r", subject="s3")).held_out.samples) == 24
    assert counted.read == 30
    utility.before(learner, NOBODY)
    assert counted.read == 60  # nothing was there any more, so all are read anew


def test_held_out_samples_that_cannot_be_read_are_told_of_at_the_request(tiny_backbone, fp32):
    class Broken(list):
        def __getitem__(self, place):
            raise SourceError("no disk")

    learner = taught({"name": "ridge", "blocks": [0, 1]}, tiny_backbone, fp32)
    utility = UtilityProbe([HoldoutPart("all", Broken(samples(3)))])
    utility.prepare(learner)
    with pytest.raises(SourceError, match="no disk"):
        utility.before(learner, NOBODY)


def test_classes_that_went_with_the_erasure_are_not_held_against_it(tiny_backbone, fp32):
    learner = taught("online_lora", tiny_backbone, fp32)
    useful = UtilityProbe([HoldoutPart("all", samples(30, 500))]).before(learner, NOBODY)
    learner.drop_class("bee")
    assert useful.after(learner, 32)["samples"] == 20
    for name in ("ant", "cat"):
        learner.drop_class(name)
    assert useful.after(learner, 32) is None


def test_without_held_out_samples_nothing_is_said(tiny_backbone, fp32):
    learner = taught("online_lora", tiny_backbone, fp32)
    assert UtilityProbe([]).before(learner, NOBODY).after(learner, 0) is None


@pytest.mark.parametrize(
    "name", [{"name": "ridge", "blocks": [0, 1]}, {"name": "ridge_lora", "lora": {"warmup_samples": 48}}]
)
@pytest.mark.long
def test_expected_changes_are_the_more_the_more_is_erased_and_only_of_learners_that_know(
    name, tiny_backbone, fp32
):
    learner = taught(name, tiny_backbone, fp32)
    for start in range(96, 576, 8):  # of these a third has its own class as label
        noisy = [replace(each, label=LABELS[n // 3 % 3]) for n, each in enumerate(samples(8, start))]
        learner.learn(Batch(start, tuple(noisy)))
    probe = UtilityProbe([HoldoutPart("all", samples(30, 900))], expects_changes=True)
    few, many = (probe.before(learner, NOBODY).after(learner, count) for count in (2, 5000))
    assert 0 <= few["expected_changed"] < many["expected_changed"] < 30
    assert few["changed"] == many["changed"] == 0
    other = taught("online_lora", tiny_backbone, fp32)
    assert "expected_changed" not in probe.before(other, NOBODY).after(other, 9)
