"""Candidates are changes of a configuration, as YAML and as --set takes them."""

import pytest
import yaml

from streamcl.advice.candidates import (
    BackboneChoice,
    Candidate,
    block_choices,
    candidates_of,
    configured_backbone,
    depths,
    image_sizes,
)
from streamcl.config.load import load_config

VIT = BackboneChoice("vit_small_patch14_dinov2", "fetch:vit-s-focus")


@pytest.fixture
def written(tmp_path):
    """Write a configuration with that learner and return its path."""

    def write(learner=None, **backbone):
        path = tmp_path / "stream.yaml"
        options = {
            "source": "demo_digits",
            "backbone": {"name": VIT.name, "weights": VIT.weights, **backbone},
        }
        path.write_text(yaml.safe_dump(options if learner is None else {**options, "learner": learner}))
        return path

    return write


@pytest.mark.parametrize(
    "learner", [None, "ridge", "ridge_lora", {"name": "ridge", "blocks": [1, 3]}, {"lora": {"rank": 2}}]
)
def test_overrides_change_what_the_patch_says_and_nothing_else(written, learner):
    path = written(learner, image_size=70)
    config = load_config(path)
    candidate = Candidate(VIT, 42, 7, (4, 6))
    changed = load_config(path, candidate.overrides(config))
    assert (changed.backbone.image_size, changed.backbone.depth) == (42, 7)
    ridge = changed.learner if changed.learner.name == "ridge" else changed.learner.ridge
    assert ridge.blocks == [4, 6]
    assert changed.backbone.weights == VIT.weights
    patch = yaml.safe_load(yaml.safe_dump(candidate.patch(config)))
    assert patch["backbone"] == {"image_size": 42, "depth": 7}
    merged = yaml.safe_load(path.read_text())
    merged["backbone"] |= patch["backbone"]
    if not isinstance(learner, dict):
        merged["learner"] = patch["learner"]
        path.write_text(yaml.safe_dump(merged))
        assert load_config(path) == changed


def test_another_backbone_is_a_part_of_the_patch(written):
    config = load_config(written())
    other = BackboneChoice("vit_base_patch16_224", "file:base weights.safetensors")
    candidate = Candidate(other, 96, 12, (11,))
    changed = load_config(written(), candidate.overrides(config))
    assert configured_backbone(changed) == other
    assert candidate.patch(config)["backbone"]["name"] == other.name


@pytest.mark.parametrize(("patch", "side"), [(14, 70), (16, 224), (8, 32), (16, 16), (14, 14)])
def test_image_sizes_are_multiples_of_the_patch_around_the_configured_one(patch, side):
    sizes = image_sizes(patch, side)
    assert side in sizes
    assert 2 <= len(sizes) <= 4
    assert all(size % patch == 0 and size > 0 for size in sizes)


@pytest.mark.parametrize("deepest", [1, 2, 3, 5, 11, 12, 24])
def test_depths_and_blocks_exist(deepest):
    assert depths(deepest)[-1] == deepest
    assert depths(deepest) == sorted(set(depths(deepest)))
    for candidate in candidates_of(VIT, [70], deepest):
        assert candidate.blocks[-1] == candidate.depth - 1
        assert list(candidate.blocks) == sorted(set(candidate.blocks))
        assert candidate.blocks[0] >= 0
    assert block_choices(deepest)
