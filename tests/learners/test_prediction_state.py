"""The state by which predictors answer: equal predictions, and no data of stored samples."""

import pytest
from pictures import make_batch
from stored_data import stored_bytes
from tiny_learners import LABELS, LEARNERS, der_pp, er, latent, online_lora, teach

from streamcl.capabilities.declaration import state_for_predictions


@pytest.mark.parametrize("make", LEARNERS, ids=lambda make: make.__name__)
def test_the_reduced_state_predicts_the_same_and_holds_no_stored_sample(make, tiny_backbone, fp32):
    learner = make(tiny_backbone, fp32)
    teach(learner)
    state = learner.state_dict()
    reduced = state_for_predictions(learner, state)
    if make in (er, der_pp, latent, online_lora):
        assert stored_bytes(state) > 0
    assert stored_bytes(reduced) == 0
    reader = make(tiny_backbone, fp32)
    reader.load_state_dict(reduced)
    asked = make_batch(900, [*LABELS, *LABELS]).samples
    assert reader.predict(asked) == learner.predict(asked)


def test_a_store_that_is_empty_yet_stays_as_it_is(tiny_backbone, fp32):
    learner = latent(tiny_backbone, fp32)
    reduced = state_for_predictions(learner, learner.state_dict())
    latent(tiny_backbone, fp32).load_state_dict(reduced)
    assert stored_bytes(reduced) == 0
