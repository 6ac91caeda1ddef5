"""The model of a run beside scikit-learn: its own checks of estimators, as far as they suit images."""

import copy
import pickle

import numpy as np
import pytest
from pictures import picture
from tiny_runs import configuration

import streamcl

base = pytest.importorskip("sklearn.base")
checks = pytest.importorskip("sklearn.utils.estimator_checks")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with streamcl.open_run(configuration(tmp_path_factory.mktemp("run"), max_samples=48)) as run:
        list(run)
    return streamcl.load(run.folder)


@pytest.fixture(scope="module")
def images():
    return np.stack([picture("bee", number) for number in range(9)])


@pytest.mark.parametrize(
    "check", ["check_get_params_invariance", "check_estimator_repr", "check_estimator_cloneable"]
)
def test_scikit_learns_own_checks_pass(model, check):
    getattr(checks, check)("RunModel", model)


@pytest.mark.parametrize(
    "copied",
    [base.clone, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))],
    ids=["clone", "deepcopy", "pickle"],
)
def test_a_copy_is_the_model_of_the_same_run(model, images, copied):
    again = copied(model)
    assert again is not model
    assert again.get_params() == {"run": model.run}
    assert again.predict(images) == model.predict(images)


def test_parameters_are_set_by_name(model):
    assert base.clone(model).set_params(run=model.run).classes == model.classes
    assert base.clone(model).set_params().classes == model.classes
    with pytest.raises(ValueError, match="the only parameter is run"):
        model.set_params(alpha=1)


def test_predictions_depend_neither_on_the_other_images_nor_on_their_order(model, images):
    whole = model.predict_proba(images)
    assert np.allclose(np.concatenate([model.predict_proba(images[k : k + 1]) for k in range(9)]), whole)
    assert np.allclose(model.predict_proba(images[::-1])[::-1], whole)


def test_to_predict_changes_neither_the_model_nor_its_input(model, images):
    before, names = images.copy(), {name for name in vars(model) if not name.startswith("_")}
    for method in (model.predict, model.predict_proba):
        method(images)
    assert np.array_equal(images, before)
    assert {name for name in vars(model) if not name.startswith("_")} == names
    read_only = images.copy()
    read_only.setflags(write=False)
    assert model.predict(read_only) == model.predict(np.asfortranarray(images)) == model.predict(images)


def test_classes_are_named_in_the_order_of_the_probabilities(model, images):
    chances = model.predict_proba(images)
    assert model.classes_.tolist() == list(model.classes)
    assert model.classes_[chances.argmax(axis=1)].tolist() == model.predict(images)


def test_the_score_is_the_accuracy_of_the_predictions(model, images):
    predicted = model.predict(images)
    labels = np.array(["none of them", *predicted[1:]])
    assert model.score(images, labels) == pytest.approx(8 / 9)
    assert np.isnan(model.score([], []))
    with pytest.raises(streamcl.BadRecord, match="9 images and 1 values"):
        model.score(images, ["bee"])
