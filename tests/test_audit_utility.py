"""What a receipt says of the use of the model: the same held-out samples before and after an erasure."""

import numpy as np
import pytest
from conftest import picture

from streamcl.audit.utility import Utility
from streamcl.composition.learner import build_learner
from streamcl.config import config_from_dict
from streamcl.events import Batch, ForgetRequest, HoldoutPart, Sample

LABELS = ("ant", "bee", "cat")


def samples(count, start=0):
    return [Sample(f"{n}", picture(LABELS[n % 3], n), LABELS[n % 3]) for n in range(start, start + count)]


def taught(name, backbone, compute):
    config = config_from_dict({"source": "demo_digits", "learner": name, "seed": 3})
    learner = build_learner(config, backbone, compute)
    for start in range(0, 96, 8):
        learner.learn(Batch(start, tuple(samples(8, start))))
    return learner


@pytest.mark.parametrize(
    "name", [{"name": "ridge", "blocks": [0, 1]}, {"name": "hybrid", "lora": {"adapt": 48}}, "online_lora"]
)
def test_accuracy_before_and_after_is_what_predictions_give(name, tiny_backbone, fp32):
    learner = taught(name, tiny_backbone, fp32)
    held = samples(30, 500)
    useful = Utility([HoldoutPart("all", held)])(learner, ForgetRequest("r", "class", 0, label="cat"))
    assert [sample.label for sample in useful.samples] == ["ant", "bee"] * 10
    before = [guess.label == sample.label for guess, sample in pairs(learner, useful.samples)]
    if hasattr(learner, "drop_adapted"):
        learner.drop_adapted()
    if hasattr(learner, "subtract"):
        learner.subtract(learner.measure([sample for sample in samples(96) if sample.label == "cat"]))
    learner.drop_class("cat")
    after = [guess.label == sample.label for guess, sample in pairs(learner, useful.samples)]
    told = useful.beside(learner)
    assert told == {"samples": 20, "before": np.mean(before), "after": np.mean(after)}
    assert told["after"] > 0.5


def pairs(learner, held):
    return zip(learner.predict(held), held, strict=True)


def test_samples_are_looked_at_once_where_no_erasure_changes_their_features(tiny_backbone, fp32, monkeypatch):
    learner = taught({"name": "ridge", "blocks": [0, 1]}, tiny_backbone, fp32)
    useful = Utility([HoldoutPart("all", samples(30, 500))])(learner, ForgetRequest("r", "samples", 0))
    monkeypatch.setattr(type(learner), "features", lambda *_: pytest.fail("looked at again"))
    assert useful.beside(learner)["samples"] == 30


def test_classes_that_went_with_the_erasure_are_not_held_against_it(tiny_backbone, fp32):
    learner = taught("online_lora", tiny_backbone, fp32)
    useful = Utility([HoldoutPart("all", samples(30, 500))])(learner, ForgetRequest("r", "samples", 0))
    learner.drop_class("bee")
    assert useful.beside(learner)["samples"] == 20
    for name in ("ant", "cat"):
        learner.drop_class(name)
    assert useful.beside(learner) is None


def test_without_held_out_samples_nothing_is_said(tiny_backbone, fp32):
    learner = taught("online_lora", tiny_backbone, fp32)
    assert Utility([])(learner, ForgetRequest("r", "samples", 0)).beside(learner) is None
