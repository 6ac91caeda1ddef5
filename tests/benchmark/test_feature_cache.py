"""What cells of a suite share changes no bit of what they come to."""

import pytest
from pictures import TINY_VIT, make_batch

from streamcl.benchmark.feature_cache import FeatureCache
from streamcl.config.load import config_from_dict
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.factory.parts import build_learner
from streamcl.storage.plain_state import state_hash

BACKBONE = {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY_VIT}
HYBRID = {"name": "ridge_lora", "lora": {"warmup_samples": 32, "rank": 2}}


def configured(learner, precision="32-true"):
    return config_from_dict(
        {
            "source": "demo_digits",
            "backbone": BACKBONE,
            "learner": learner,
            "precision": precision,
            "device": "cpu",
        }
    )


def come_to(config, memory):
    """State after some batches with examinations between, and all answers."""
    compute = build_compute(config)
    learner = build_learner(config, build_vit(config, compute), compute)
    if memory is not None:
        memory.attach(learner, config)
    held, answers = make_batch(1000, ["ant", "bee", "cat"] * 7).samples, []
    for number in range(8):
        learner.learn(make_batch(8 * number, ["ant", "bee", "cat", "dog"] * 2))
        answers.append(learner.predict(held))
    return state_hash(learner.state_dict()), answers, learner


@pytest.mark.long
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("learner", [HYBRID, "ridge", "ncm"])
def test_with_a_memory_cells_come_to_the_same(learner, precision):
    config, memory = configured(learner, precision), FeatureCache()
    alone, answers, _ = come_to(config, None)
    for _ in range(2):  # the second finds all that the first has read
        state, remembered, _ = come_to(config, memory)
        assert state == alone
        assert remembered == answers


def test_once_settled_an_image_passes_the_adapted_branch_once():
    _, _, learner = come_to(configured(HYBRID), FeatureCache())
    assert learner.adapted.frozen
    held = make_batch(1000, ["ant", "bee", "cat"] * 7).samples
    learner.adapted.adapters.run = None  # nothing is computed any more
    learner.predict(held)
    with pytest.raises(TypeError):
        learner.predict(make_batch(5000, ["ant"]).samples)
