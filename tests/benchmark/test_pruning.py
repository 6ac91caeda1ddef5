"""Pruned blocks: dropping nothing changes nothing, and what is dropped makes them smaller."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch

from streamcl.nn.build import build_backbone

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import pruning
from pruning import Prefix, drop_heads, drop_neurons, pruned, without_blocks, without_inputs
from rank_gate import shorten

WIDTH = 32


@pytest.fixture
def whole():
    sizes = {"patch_size": 8, "embed_dim": WIDTH, "depth": 4, "num_heads": 2}
    backbone = build_backbone("vit_tiny_patch16_224", weights="none", image_size=32, args=sizes)
    return Prefix("whole", backbone, backbone.blocks)


@pytest.fixture
def pixels():
    return torch.randn(48, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_layer_of_all_its_inputs_is_the_layer(monkeypatch):
    monkeypatch.setattr(pruning, "RIDGE", 1e-12)
    layer, inputs = torch.nn.Linear(6, 3), torch.randn(200, 6)
    same = without_inputs(layer, inputs, torch.arange(6))
    torch.testing.assert_close(same.weight, layer.weight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(same.bias, layer.bias, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_input_that_others_give_is_dropped_without_loss(monkeypatch):
    monkeypatch.setattr(pruning, "RIDGE", 1e-9)
    inputs = torch.randn(200, 6)
    inputs[:, 5] = inputs[:, 0] - 2 * inputs[:, 1] + 3
    layer = torch.nn.Linear(6, 3)
    smaller = without_inputs(layer, inputs, torch.arange(5))
    torch.testing.assert_close(smaller(inputs[:, :5]), layer(inputs), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_neurons_and_heads_that_add_nothing_are_dropped_first(whole, pixels):
    tokens = whole.backbone.stem(pixels)
    block = copy.deepcopy(whole.blocks[0])
    block.mlp.fc2.weight[:, ::2] = 0
    block.attn.proj.weight[:, : WIDTH // 2] = 0
    expected = block(tokens)
    drop_heads(block, tokens, 1)
    drop_neurons(block, tokens, 0.5)
    assert block.attn.qkv.out_features == 3 * WIDTH // 2
    assert block.mlp.fc1.out_features == 2 * WIDTH
    torch.testing.assert_close(block(tokens), expected, atol=2e-2, rtol=2e-2)


@torch.no_grad()
def test_prefixes_are_smaller_and_leave_the_whole_as_it_was(whole, pixels):
    before = whole.read(pixels, [1, 3])
    smaller = pruned(whole, pixels, 0.5, 1)
    shorter = without_blocks(whole, pixels, 1)
    assert (len(smaller.blocks), len(shorter.blocks)) == (4, 3)
    assert smaller.read(pixels, [1, 3]).shape == before.shape
    assert torch.equal(whole.read(pixels, [1, 3]), before)


def test_short_columns_vanish_and_long_ones_lose_a_length():
    class Layer:
        lora_B = torch.tensor([[[3.0, 0.1], [4.0, 0.0]]])

    shorten(Layer, 1.0)
    torch.testing.assert_close(Layer.lora_B, torch.tensor([[[2.4, 0.0], [3.2, 0.0]]]))
