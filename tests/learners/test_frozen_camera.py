"""The same picture again and again, as of a camera that hangs, is learned by every learner."""

import numpy as np
import pytest
from tiny_runs import TINY

from streamcl.config.load import config_from_dict
from streamcl.events import Batch, Sample
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.factory.parts import build_learner

PICTURE = np.zeros((16, 16, 3), np.uint8)


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["ridge", "ridge_lora", "mixed_privacy", "slda", "ncm", "cohort_adapters", "reconstruct"]
)
def test_equal_pictures_under_two_labels_are_learned_as_their_frequencies(name):
    """The features' variance is rounding alone, so no ridge in proportion to it makes the sums regular."""
    backbone = {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY}
    config = config_from_dict(
        {"source": "demo_digits", "backbone": backbone, "learner": name, "threads": 1, "precision": "32-true"}
    )
    compute = build_compute(config)
    learner = build_learner(config, build_vit(config, compute), compute)
    for number in range(30):
        samples = (Sample(f"{number}-{k}", PICTURE, "ab"[k % 2]) for k in range(16))
        learner.learn(Batch(16 * number, tuple(samples)))
    (prediction,) = learner.predict([Sample("again", PICTURE)])
    assert prediction.label in {"a", "b"}
    assert 0.3 <= prediction.confidence <= 1.0
