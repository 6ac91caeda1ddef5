"""The parts of a candidate: what is counted is what a run with it builds."""

from pictures import TINY_VIT
from tiny_runs import configuration

from streamcl.advice.candidates import configured_backbone
from streamcl.advice.space import Space
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.factory.parts import build_learner

VIT = {**TINY_VIT, "depth": 12}
DEEP = {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": VIT}


def bytes_of_a_class(space, candidate):
    """The growth of the estimate by one class: four float64 columns of each head's width."""
    return space.memory(candidate, 0.0, 1001) - space.memory(candidate, 0.0, 1000)


def run_of(folder, **ridge):
    return configuration(
        folder, {"name": "ridge_lora", "lora": {"first_block": 1}, "ridge": ridge}, backbone=DEEP
    )


def test_the_width_of_the_adapted_branch_is_that_of_its_head(tmp_path):
    config = run_of(tmp_path)
    compute = build_compute(config)
    space = Space(lambda overrides: config, configured_backbone(config), compute)
    candidate = max(space.candidates, key=lambda each: len(each.blocks))
    config = run_of(tmp_path, blocks=list(candidate.blocks))
    learner = build_learner(config, build_vit(config, compute), compute)
    widths = sum(head.statistic_width for head in (learner.exact.head, learner.adapted.head))
    assert bytes_of_a_class(space, candidate) == 4 * 8 * widths
