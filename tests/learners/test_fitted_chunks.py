"""A learner that answers requests reads the images that it was asked about, and no more."""

from dataclasses import replace

import pytest
from pictures import TINY_VIT, make_batch
from streams_data import write_picture
from tiny_learners import LEARNERS, cohorts, hybrid, mixed, ridge, teach
from tiny_runs import call, configuration

from streamcl.config.load import config_from_dict
from streamcl.factory import backbone as factory
from streamcl.nn.backbone import Backbone
from streamcl.runs.learner import load_learner
from streamcl.runs.open import open_run

PADDED = [ridge, hybrid, cohorts, mixed]


class Sizes:
    """The numbers of images that enter a backbone meanwhile."""

    def __init__(self, backbone):
        self._embed, self.seen = backbone.model.patch_embed, []

    def __enter__(self):
        self._hook = self._embed.register_forward_hook(lambda _, given, out: self.seen.append(len(given[0])))
        return self.seen

    def __exit__(self, *_):
        self._hook.remove()


@pytest.mark.parametrize("make", [*LEARNERS, cohorts, mixed], ids=lambda make: make.__name__)
def test_it_predicts_what_the_run_predicts(make, tiny_backbone, fp32):
    learner = make(tiny_backbone, replace(fp32, rows=16))
    teach(learner, batches=4)
    served = make(tiny_backbone, fp32.for_requests())
    served.load_state_dict(learner.state_dict())
    samples = make_batch(500, ["ant", "bee", "cat", "dog", "ant", "bee", "cat"]).samples
    for count in (1, 3, 7):
        expected, found = learner.predict(samples[:count]), served.predict(samples[:count])
        assert [each.label for each in found] == [each.label for each in expected]
        assert [each.confidence for each in found] == pytest.approx(
            [each.confidence for each in expected], abs=1e-4
        )


@pytest.mark.parametrize("make", PADDED, ids=lambda make: make.__name__)
def test_one_image_is_read_as_one_image(make, tiny_backbone, fp32):
    learner = make(tiny_backbone, replace(fp32, rows=16))
    teach(learner, batches=4)
    served = make(tiny_backbone, fp32.for_requests())
    served.load_state_dict(learner.state_dict())
    views = 1 if make.__name__ == "ridge" else 2
    samples = make_batch(500, ["bee"] * 70).samples
    for count, chunks in ((1, [1]), (3, [4]), (8, [8]), (70, [64, 8])):
        with Sizes(tiny_backbone) as seen:
            served.predict(samples[:count])
        assert seen == [views * chunk for chunk in chunks]
    with Sizes(tiny_backbone) as seen:
        learner.predict(samples[:1])
    assert seen == [views * 16]


def test_the_learner_of_a_run_is_loaded_for_requests_only_where_that_is_asked_for(tmp_path):
    vit = {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY_VIT}
    config = {"source": "demo_digits", "backbone": vit, "batch": 16, "max_samples": 32}
    with open_run({**config, "run_dir": str(tmp_path / "run")}) as run:
        list(run)
    asked = []

    def build(config, compute):
        asked.append(compute)
        return factory.build_vit(config, compute)

    for fitted in (False, True):
        load_learner(tmp_path / "run", vit=build, fitted=fitted)
    assert [(each.rows, each.fitted) for each in asked] == [(16, False), (64, True)]


def test_blocks_are_not_compiled_for_requests(monkeypatch, fp32):
    asked = []
    monkeypatch.setattr(factory, "compile_blocks", lambda backbone, compute: asked.append(compute.rows))
    options = {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY_VIT}
    config = config_from_dict({"source": "demo_digits", "backbone": {**options, "compile": True}})
    factory.build_vit(config, fp32)
    factory.build_vit(config, fp32.for_requests())
    assert asked == [fp32.rows]


def test_the_command_predict_reads_one_image_as_one_image(tmp_path, monkeypatch):
    with open_run(configuration(tmp_path)) as run:
        list(run)
    write_picture(tmp_path / "one.png", 1)
    seen, prepare = [], Backbone.prepare

    def counted(backbone, images):
        seen.append(len(images))
        return prepare(backbone, images)

    monkeypatch.setattr(Backbone, "prepare", counted)
    assert call("predict", tmp_path / "run", tmp_path / "one.png")[0] == 0
    assert seen[-1] == 1
