"""`streamcl.load`: the model of a run names the classes of images in every form that a source takes."""

import numpy as np
import pytest
import torch
from pictures import picture
from PIL import Image
from tiny_runs import configuration

import streamcl


@pytest.fixture(scope="module", params=["ridge", "ncm"])
def run_dir(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with streamcl.open_run(configuration(folder, request.param)) as run:
        for _ in run:
            pass
    return folder / "run"


def test_images_in_every_form_have_the_same_class(run_dir, tmp_path):
    model = streamcl.load(run_dir)
    pixels = picture("bee", 1)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    path = tmp_path / "one.png"
    forms = [
        pixels,
        Image.fromarray(pixels),
        path,
        str(path),
        path.read_bytes(),
        torch.from_numpy(pixels.copy()),
    ]
    assert len(set(model.predict(forms))) == 1
    assert model.predict(np.stack([pixels] * 2)) == model.predict([pixels] * 2)
    assert model.predict(torch.from_numpy(np.stack([pixels] * 2))) == model.predict([pixels] * 2)


def test_probabilities_are_of_all_classes_and_agree_with_the_class(run_dir):
    model = streamcl.load(run_dir)
    images = [picture("bee", number) for number in range(5)]
    chances = model.predict_proba(images)
    assert chances.shape == (5, len(model.classes))
    assert chances.sum(axis=1) == pytest.approx(1)
    assert [model.classes[place] for place in chances.argmax(axis=1)] == model.predict(images)
    assert model.predict([]) == []
    assert model.predict_proba([]).shape == (0, len(model.classes))


def test_it_says_what_it_is(run_dir):
    model = streamcl.load(str(run_dir))
    assert repr(model).startswith(f"RunModel({str(run_dir)!r}, learner=")
    assert f"classes={len(model.classes)}" in repr(model)


@pytest.mark.parametrize("images", ["one.png", b"bytes", np.zeros((8, 8, 3), np.uint8), 7])
def test_a_single_image_is_refused_with_what_to_write(run_dir, images):
    with pytest.raises(streamcl.BadRecord) as refused:
        streamcl.load(run_dir).predict(images)
    assert refused.value.hint == "write [image]"


def test_what_is_no_image_and_no_run_is_an_error_of_ours(run_dir, tmp_path):
    with pytest.raises(streamcl.BadRecord, match="cannot be read"):
        streamcl.load(run_dir).predict(["absent.png"])
    with pytest.raises(streamcl.ConfigError, match="no run"):
        streamcl.load(tmp_path)
