"""The public names: each is there, importing costs no torch, and the River wrapper is a River classifier."""

import subprocess
import sys

import numpy as np
import pytest
from pictures import TINY_VIT, picture

import streamcl
from streamcl import errors

TINY = {"backbone": {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY_VIT}}


@pytest.mark.parametrize("name", streamcl.__all__)
def test_every_exported_name_is_there_and_documented(name):
    found = getattr(streamcl, name)
    assert isinstance(found, str) or found.__doc__
    assert name in dir(streamcl)


def test_every_error_is_exported():
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    ours = {name for name in defined if issubclass(getattr(errors, name), errors.StreamclError)}
    assert ours <= set(streamcl.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = streamcl.nonsense


WITHOUT_TORCH = (
    "streamcl",
    "streamcl.events",
    "streamcl.processor.loop",
    "streamcl.testing",
    "streamcl.config.load",
)
IMPORT_EACH = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    found = {"torch", "timm"} & sys.modules.keys()
    assert not found, f"{name} imports {found}"
"""


def test_importing_loads_no_torch():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH, *WITHOUT_TORCH], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_river_progressive_validation_runs_over_images():
    from river import evaluate, metrics

    model = streamcl.RiverClassifier(
        {**TINY, "learner": {"name": "ridge", "blocks": [0, 1, 2]}, "precision": "32-true"}
    )
    labels = [("ant", 7)[i % 2] for i in range(40)]
    stream = [({"image": picture(str(label), i)}, label) for i, label in enumerate(labels)]
    accuracy = evaluate.progressive_val_score(stream, model, metrics.Accuracy())
    assert accuracy.get() > 0.7
    assert model.predict_one(stream[1][0]) == 7
    chances = model.predict_proba_one(stream[0][0])
    assert sum(chances.values()) == pytest.approx(1)
    assert max(chances, key=chances.get) == "ant"


def test_before_the_first_lesson_the_wrapper_names_nothing():
    model = streamcl.RiverClassifier({**TINY, "learner": {"name": "ridge", "blocks": [0]}})
    assert model.predict_one(picture("ant", 0)) is None
    assert model.predict_proba_one(picture("ant", 0)) == {}
    with pytest.raises(streamcl.StreamclError, match="image"):
        model.predict_one(np.zeros(4))


def test_a_batch_is_gathered_where_that_was_asked_for():
    model = streamcl.RiverClassifier({**TINY, "learner": {"name": "ridge", "blocks": [0]}}, batch_size=3)
    for number in range(2):
        model.learn_one(picture("ant", number), "ant")
    assert model.learner.classes == ()
    model.learn_one(picture("bee", 5), "bee")
    assert model.learner.classes == ("ant", "bee")
