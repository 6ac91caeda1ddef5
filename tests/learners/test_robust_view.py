"""Robust views follow from a sample, are learned beside it, forgotten with it, and never predicted from."""

import hashlib

import numpy as np
import pytest
from pictures import make_batch, picture
from tiny_learners import LABELS, hybrid, latent, mixed, ridge, with_robust_views

from streamcl.capabilities.declaration import capabilities_of
from streamcl.config.load import config_from_dict
from streamcl.errors import ConfigError
from streamcl.events import Batch
from streamcl.learners.factory import LearnerContext
from streamcl.learners.ridge import RIDGE
from streamcl.learners.ridge_lora import RIDGE_LORA
from streamcl.learners.robust_view import robust_view

IMAGE = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
LEARNERS = [ridge, hybrid, latent]


def test_a_view_follows_from_the_image_and_the_name():
    views = [robust_view(IMAGE, 16, f"sample-{number}") for number in range(24)]
    assert all(view.shape == IMAGE.shape and view.dtype == np.uint8 for view in views)
    assert len({view.tobytes() for view in views}) > 12
    assert np.array_equal(views[5], robust_view(IMAGE, 16, "sample-5"))
    assert robust_view(picture("ant", 0), 24, "a").shape == (24, 24, 3)


def test_noise_is_the_same_in_every_version():
    """Erasing by another version of numpy finds the view that was learned."""
    view = robust_view(np.full((8, 8, 3), 128, np.uint8), 8, "noise-1")
    assert view.std() > 1
    assert hashlib.sha256(view.tobytes()).hexdigest()[:16] == "d252a93d041e0352"


@pytest.mark.parametrize("make", LEARNERS)
def test_what_is_forgotten_was_never_learned(tiny_backbone, fp32, make):
    model, fresh = (with_robust_views(make(tiny_backbone, fp32, **options(make))) for _ in range(2))
    batches = [make_batch(8 * number, LABELS * 2) for number in range(6)]
    for batch in batches:
        model.learn(batch)
        fresh.learn(Batch(batch.offset, batch.samples[:4]))
    statistics = capabilities_of(model).statistics
    for batch in batches:
        statistics.subtract(statistics.of(batch.samples[4:]))
    one, other = (head_of(each).statistics for each in (model, fresh))
    order = [fresh.classes.index(name) for name in model.classes]
    assert one.relative_error(other.select(order)) < 1e-9


@pytest.mark.parametrize("make", [*LEARNERS, mixed])
def test_views_are_read_while_learning_alone(tiny_backbone, fp32, make):
    plain, model = make(tiny_backbone, fp32), with_robust_views(make(tiny_backbone, fp32))
    reader, read = exact(model).robust, []
    exact(model).robust = lambda samples: read.append(len(samples)) or reader(samples)
    for each in (plain, model):
        each.learn(make_batch(0, LABELS * 2))
    model.predict(make_batch(50, LABELS).samples)
    assert read == [8]
    differ = exact(plain).head.statistics.relative_error(exact(model).head.statistics)
    assert 1e-3 < differ < 1


@pytest.mark.parametrize(("factory", "branch"), [(RIDGE, {}), (RIDGE_LORA, {"ridge": {}})])
def test_the_option_makes_such_a_learner(tiny_backbone, fp32, factory, branch):
    found = {"blocks": [0, 1, 2], "robust_share": 0.3}
    learner = factory(LearnerContext(tiny_backbone, fp32), **({"ridge": found} if branch else found))
    learner.learn(make_batch(0, LABELS * 2))
    again = factory(LearnerContext(tiny_backbone, fp32), **({"ridge": found} if branch else found))
    again.load_state_dict(learner.state_dict())
    assert exact(again).head.row_width == 2 * exact(again).head.statistic_width
    asked = make_batch(90, LABELS).samples
    assert [each.label for each in again.predict(asked)] == [each.label for each in learner.predict(asked)]


def test_cohorts_have_none():
    learner = {"name": "cohort_adapters", "ridge": {"robust_share": 0.3}}
    with pytest.raises(ConfigError, match="robust_share"):
        config_from_dict({"source": "digits", "learner": learner})


def options(make):
    return {"adapt": 0} if make is hybrid else {}


def exact(learner):
    """The part of a learner with the frozen head."""
    return getattr(getattr(learner, "core", learner), "exact", learner)


def head_of(learner):
    return exact(learner).head
