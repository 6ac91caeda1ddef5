"""Low-pass back-propagation: whole at full order, nearer the truth with every order, forwards exact."""

from itertools import pairwise

import pytest
import torch
from pictures import TINY_VIT
from tiny_backbones import images, shared

from streamcl.config.load import config_from_dict
from streamcl.errors import ConfigError
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.factory.parts import build_learner
from streamcl.nn.adapted_blocks import Adapters
from streamcl.nn.low_pass_backprop import LowPass, low_pass_basis

PLAIN = ["vit", "deit", "dinov2", "eva"]


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 5), (3, 7), (1, 6), (14, 14)])
def test_bases_are_orthonormal_and_at_full_order_complete(height, width):
    for order in (1, 2, 3, height + width - 1):
        basis = low_pass_basis(height, width, order)
        assert len(basis) == sum(i + j < order for i in range(height) for j in range(width))
        torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)), atol=1e-5, rtol=0)
    assert len(basis) == height * width


def test_a_basis_of_a_power_of_two_is_walsh_hadamard_s_by_sequency():
    basis = low_pass_basis(1, 8, 8)
    torch.testing.assert_close(basis.abs() * 8**0.5, torch.ones(8, 8))
    assert (basis.sign().diff(dim=1) != 0).sum(1).tolist() == list(range(8))


def gradients(family, order, *, first_block=0):
    """Output and gradient of every adapter, with a fixed pair in each."""
    backbone = shared(family)
    low_pass = None if order is None else LowPass(*backbone.grid, order=order)
    generator = torch.Generator().manual_seed(0)
    adapters = Adapters(backbone, rank=2, first_block=first_block, generator=generator, low_pass=low_pass)
    with torch.no_grad():
        for parameter in adapters.trainable().values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    tokens = backbone.run(backbone.stem(backbone.prepare(images())), stop=first_block)
    tokens = [backbone.stem(backbone.prepare(images())), *tokens][-1]
    out = backbone.final(adapters.run(tokens)[-1])
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad((out - target).square().mean(), list(adapters.trainable().values()))
    return out.detach(), torch.cat([each.flatten() for each in found])


@pytest.mark.parametrize("family", PLAIN)
def test_full_order_is_plain_back_propagation(family):
    (out, whole), (same, low) = gradients(family, None), gradients(family, 7)  # 4 x 4 patches
    torch.testing.assert_close(same, out)
    torch.testing.assert_close(low, whole, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("family", PLAIN)
def test_the_gradient_comes_nearer_with_the_order_and_the_output_stays(family):
    out, whole = gradients(family, None)
    cosines = []
    for order in (1, 3, 5, 7):
        same, low = gradients(family, order)
        torch.testing.assert_close(same, out)
        cosines.append(float(torch.nn.functional.cosine_similarity(low, whole, dim=0)))
    assert cosines[0] > 0.2
    assert cosines[0] < cosines[-1]
    assert all(after > before - 0.02 for before, after in pairwise(cosines))
    assert cosines[-1] == pytest.approx(1.0, abs=1e-4)


def test_prefix_tokens_are_passed_exactly():
    low_pass = LowPass(2, 4, 4, order=1)
    g, W = torch.randn(3, 18, 5), torch.randn(5, 6)
    got = low_pass.filtered_product(g, W)
    torch.testing.assert_close(got[:, :2], (g @ W)[:, :2])
    torch.testing.assert_close(got[:, 2:], (g @ W)[:, 2:].mean(1, keepdim=True).expand(-1, 16, -1))


def settings(learner, **options):
    backbone = {"name": "vit_tiny_patch16_224", "weights": "none", "image_size": 32, "args": TINY_VIT}
    return config_from_dict({"source": "x", "learner": learner, "backbone": {**backbone, **options}})


def made(learner, **options):
    config = settings(learner, **options)
    compute = build_compute(config)
    return build_learner(config, build_vit(config, compute), compute)


def test_the_configuration_reaches_the_adapters():
    learner = made({"name": "online_lora", "last_blocks": 1, "backprop": {"lbp_wht": {"order": 2}}})
    assert learner.adapters.first_block == learner.backbone.depth - 1
    assert all(layer.low_pass is not None for layer in learner.adapters.layers)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="exclude each other"):
        settings({"name": "online_lora", "last_blocks": 1, "first_block": 1})
    with pytest.raises(ConfigError, match=r"learner.last_blocks: is 40, but"):
        made({"name": "online_lora", "last_blocks": 40})
