"""Frozen layers cast their weights once, and give what autocast gives, bit for bit."""

import copy
import math

import pytest
import torch
from torch import nn

from streamcl.nn.frozen_linear import FrozenLinear, cast_once, freeze_linears


def layers(bias=True):
    plain = nn.Linear(48, 32, bias=bias)
    frozen = nn.Sequential(copy.deepcopy(plain))
    freeze_linears(frozen)
    assert type(frozen[0]) is FrozenLinear
    return plain.requires_grad_(False), frozen[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_the_product_and_its_way_back_are_those_of_a_plain_layer(bias, dtype):
    plain, frozen = layers(bias)
    came = []
    for layer in (plain, frozen):
        x = torch.linspace(-2, 2, 5 * 48).view(5, 48).requires_grad_()
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            y = layer(x)
        y.float().square().sum().backward()
        came.append((y, x.grad))
    assert came[0][0].dtype == came[1][0].dtype == (dtype or torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(*came, strict=True))


@pytest.mark.parametrize("shape", [(1, 48), (5, 48), (2, 3, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_without_gradients_it_is_the_same_product(bias, shape):
    plain, frozen = layers(bias)
    x = torch.linspace(-2, 2, 6 * 48)[: math.prod(shape)].view(shape)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        one, other = plain(x), frozen(x)
    assert one.dtype == other.dtype == torch.bfloat16
    torch.testing.assert_close(one, other)


def test_a_weight_is_cast_once_until_it_is_written_to():
    weight = nn.Parameter(torch.ones(3), requires_grad=False)
    first = cast_once(weight, torch.bfloat16)
    assert cast_once(weight, torch.bfloat16) is first
    weight.mul_(2)
    assert cast_once(weight, torch.bfloat16).tolist() == [2.0, 2.0, 2.0]
    assert cast_once(weight, torch.float32) is weight


def test_copies_that_share_a_weight_share_what_was_cast_of_it():
    _, frozen = layers()
    twin = copy.deepcopy(frozen, {id(frozen.weight): frozen.weight})
    assert cast_once(twin.weight, torch.bfloat16) is cast_once(frozen.weight, torch.bfloat16)


def test_layers_of_another_kind_stay_what_they_are():
    class Own(nn.Linear):
        pass

    module = nn.Sequential(Own(2, 2), nn.LayerNorm(2))
    freeze_linears(module)
    assert type(module[0]) is Own
