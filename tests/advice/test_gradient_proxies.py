"""ZiCo, SNIP and the gradient's norm, by hand on a network of two weights; backbones stay frozen."""

import math

import pytest
import torch
from tiny_backbones import build, images

from streamcl.advice.block_tokens import BackboneSizes
from streamcl.advice.gradient_proxies import (
    MIN_DEVIATION,
    batch_gradients,
    gradient_proxies,
    layer_weights,
)
from streamcl.advice.proxies import agreement, size_proxies, trainability
from streamcl.events import Sample


def test_two_weights_by_hand():
    """y = v w x with w = 2, v = 3 and the loss (y - 1)^2: slopes are 2 (6 x - 1) x times 3 and times 2."""
    w, v = weights = [torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)]
    batches = [torch.autograd.grad((v * w * x - 1).square(), weights) for x in (1.0, 2.0)]
    assert batches == [(30.0, 20.0), (132.0, 88.0)]  # 10 and 44, each times 3 and times 2
    found = gradient_proxies([weight.detach() for weight in weights], batches)
    ratio = 27 / (34 / math.sqrt(2))  # the mean of 10 and 44 in units of their standard deviation
    assert found.zico == pytest.approx(2 * math.log(ratio))
    assert found.grad_norm == pytest.approx(math.hypot(3 * 27, 2 * 27))
    assert found.snip == pytest.approx(2 * 3 * 27 + 3 * 2 * 27)


def test_deviations_are_of_sizes_and_signs_cancel_in_the_mean_alone():
    weights = [torch.tensor([1.0])]
    found = gradient_proxies(weights, [[torch.tensor([3.0])], [torch.tensor([-1.0])]])
    assert found.zico == pytest.approx(math.log(2 / math.sqrt(2)))  # of 3 and 1, not of 3 and -1
    assert found.grad_norm == pytest.approx(1.0)


def test_equal_gradients_have_a_bounded_score_and_none_add_nothing():
    weights = [torch.ones(3), torch.ones(2)]
    equal = [torch.full((3,), 2.0), torch.zeros(2)]
    assert gradient_proxies(weights, [equal, equal, equal]).zico == pytest.approx(
        math.log(3 / MIN_DEVIATION), rel=1e-3
    )


def test_a_backbone_is_frozen_again_and_unchanged():
    backbone = build("vit")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    samples = [Sample(f"{place}", image) for place, image in enumerate(images(32))]
    targets = torch.arange(32) % 3
    found = trainability(backbone, 2, samples, targets)
    assert all(math.isfinite(value) for value in found)
    assert found.grad_norm > 0
    assert found == trainability(backbone, 2, samples, targets)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_gradients_are_those_of_the_loss():
    backbone = build("vit")
    pixels, targets = backbone.prepare(images(16)), torch.arange(16) % 2
    (found,) = batch_gradients(backbone, 2, pixels, targets)
    weights = layer_weights(backbone, 2)
    assert [each.shape for each in found] == [each.shape for each in weights]
    assert len(weights) == 1 + 2 * 4  # the patches, and qkv, projection and two layers of the MLP a block
    assert all(float(each.abs().max()) > 0 for each in found)


def test_sizes_grow_with_the_blocks():
    sizes = BackboneSizes.of(build("vit"))
    found = [size_proxies(sizes, depth) for depth in (1, 2, 3)]
    assert found[1]["params"] - found[0]["params"] == sizes.parameters[2]
    assert found[0]["flops"] < found[1]["flops"] < found[2]["flops"]


def test_agreement_is_kendalls_tau():
    proxies = [{"up": 1.0, "down": 3.0}, {"up": 2.0, "down": 2.0}, {"up": 5.0, "down": 1.0}]
    assert agreement(proxies, [0.1, 0.2, 0.3]) == pytest.approx({"up": 1.0, "down": -1.0})
    assert agreement([], []) == {}
