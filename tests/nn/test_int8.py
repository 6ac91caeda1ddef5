"""Frozen blocks in int8: near the float features, each token by itself, and no part of training."""

import pytest
import torch
from pictures import TINY_VIT, make_batch
from tiny_runs import call, configuration

from streamcl.config.load import config_from_dict
from streamcl.errors import ConfigError
from streamcl.factory.backbone import build_vit
from streamcl.learners.block_features import FrozenReader
from streamcl.nn.adapted_blocks import Adapters
from streamcl.nn.build import build_backbone
from streamcl.nn.device import Compute
from streamcl.nn.int8 import int8_affine, quantise_blocks
from streamcl.runs.open import open_run

COMPUTE = Compute(torch.device("cpu"), "32-true", rows=16)
SAMPLES = make_batch(0, ["ant", "bee", "cat"] * 9).samples
VIT = {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY_VIT}

pytestmark = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="torch has no int8 products here"
)


def build(*, int8):
    backbone = build_backbone("vit_tiny_patch16_224", weights="none", image_size=32, args=TINY_VIT)
    if int8:
        quantise_blocks(backbone, COMPUTE)
    return backbone


@pytest.fixture(scope="module")
def quantised():
    return build(int8=True)


def features(backbone, samples, views=1):
    return FrozenReader(backbone, COMPUTE, [0, 2], tta_views=views)(samples)


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_off_by_little_whatever_the_scale_of_a_token(bias):
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 48, bias=bias)
    x = torch.randn(3, 7, 64) * torch.logspace(-3, 3, 7)[:, None]
    x[1, 2] = 0
    with torch.no_grad():
        expected, found = layer(x), int8_affine(x, layer.weight, layer.bias)
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-12)
    assert float(error.max()) < 0.05


def test_a_weight_that_was_written_to_multiplies_as_it_is_now():
    torch.manual_seed(0)
    weight, x = torch.randn(48, 64), torch.randn(7, 64)
    first = int8_affine(x, weight, None)
    weight.mul_(2)
    assert torch.equal(int8_affine(x, weight, None), 2 * first)


@pytest.mark.parametrize("views", [1, 2])
def test_a_feature_does_not_depend_on_which_images_come_with_it(quantised, views):
    together = features(quantised, SAMPLES, views)
    assert torch.equal(features(quantised, SAMPLES[5:6], views), together[5:6])
    assert torch.equal(features(quantised, SAMPLES[::-1], views), together.flip(0))


def test_features_are_near_those_of_float32_and_other_than_these(quantised):
    plain, found = features(build(int8=False), SAMPLES), features(quantised, SAMPLES)
    assert 0 < float((found - plain).norm() / plain.norm()) < 0.1


def test_gradients_go_through_the_plain_blocks(quantised):
    plain = build(int8=False)
    tokens = plain.stem(torch.randn(5, 3, 32, 32)).requires_grad_()
    assert torch.equal(quantised.run(tokens)[-1], plain.run(tokens)[-1])


def adapters_of(backbone):
    made = Adapters(backbone, rank=2, first_block=1, generator=torch.Generator().manual_seed(0))
    for layer in made.layers:
        torch.nn.init.normal_(layer.lora_B, std=0.05, generator=torch.Generator().manual_seed(1))
    return made


def test_adapted_blocks_multiply_in_int8_once_their_adapters_are_frozen_and_not_before(quantised):
    plain, found = adapters_of(build(int8=False)), adapters_of(quantised)
    tokens = quantised.stem(torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(2)))
    with torch.no_grad():
        assert torch.equal(found.run(tokens)[-1], plain.run(tokens)[-1])
        for each in (plain, found):
            each.consolidate(torch.Generator().manual_seed(3))
            each.bypass_lora()
        after, expected = found.run(tokens)[-1], plain.run(tokens)[-1]
        assert 0 < float((after - expected).norm() / expected.norm()) < 0.1
        assert torch.equal(found.run(tokens[2:3])[-1], after[2:3])
    assert torch.equal(found.run(tokens)[-1], plain.run(tokens)[-1])  # with gradients


def test_frozen_adapters_that_add_nothing_give_the_bits_of_the_frozen_blocks(quantised):
    made = Adapters(quantised, rank=2, first_block=1, generator=torch.Generator().manual_seed(0))
    made.bypass_lora()
    tokens = quantised.stem(torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(2)))
    with torch.no_grad():
        expected = quantised.run(tokens, 1)
        assert all(torch.equal(*pair) for pair in zip(made.run(tokens), expected, strict=True))


def test_adapters_that_were_loaded_compute_as_those_that_were_saved(quantised):
    saved, loaded = adapters_of(quantised), adapters_of(quantised)
    saved.consolidate(torch.Generator().manual_seed(3))
    saved.bypass_lora()
    loaded.bypass_lora()
    loaded.import_state(saved.export_state())
    tokens = torch.randn(5, 5, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert not torch.equal(loaded.run(tokens)[-1], saved.run(tokens)[-1])  # in floats, as pairs are live
        loaded.bypass_lora()
        assert torch.equal(loaded.run(tokens)[-1], saved.run(tokens)[-1])


def test_where_it_cannot_be_the_configuration_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="this is bf16-mixed on cpu"):
        quantise_blocks(build(int8=False), Compute(torch.device("cpu"), "bf16-mixed", rows=16))
    both = config_from_dict({"source": "x", "backbone": {**VIT, "int8": True, "compile": True}})
    with pytest.raises(ConfigError, match="compiled blocks multiply in floats"):
        build_vit(both, COMPUTE)
    monkeypatch.setattr("streamcl.nn.int8.ENGINE", "none")
    with pytest.raises(ConfigError, match="has no none here"):
        quantise_blocks(build(int8=False), COMPUTE)


@pytest.mark.long
@pytest.mark.parametrize("learner", ["ridge", "ridge_lora"])
def test_a_run_learns_with_it_and_forgets_a_class_exactly(tmp_path, learner):
    with open_run(configuration(tmp_path, learner, backbone={**VIT, "int8": True})) as run:
        labels = {prediction.label for prediction in run}
    assert len(labels) > 2
    code, text = call("forget", tmp_path / "run", "--class", "3", "--guarantee", "exact", "--execute")
    assert code == 0, text
    assert "done: exact" in text
