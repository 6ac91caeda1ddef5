"""Frozen blocks without some of their neurons or heads, and prefixes without some of their blocks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamcl.learners.block_features import concat_block_tokens
from streamcl.nn.backbone import Backbone
from streamcl.nn.frozen_linear import freeze_linears

CHUNK = 32
RIDGE = 1e-3
"""Ridge of a layer that is fitted anew, as a share of the mean variance of its inputs."""


@dataclass(frozen=True)
class Prefix:
    """Blocks of a backbone, some of them smaller than they were."""

    name: str
    backbone: Backbone
    blocks: list[nn.Module]

    def outputs(self, pixels: Tensor, depth: int) -> list[Tensor]:
        """The tokens [B, N, d] after each of the first blocks, of pixels [B, 3, S, S]."""
        return self.backbone.run(self.backbone.stem(pixels), 0, depth, self.blocks)

    def read(self, pixels: Tensor, blocks: Sequence[int]) -> Tensor:
        """The features [B, D] of some blocks."""
        return concat_block_tokens(self.backbone, self.outputs(pixels, blocks[-1] + 1), blocks)


def without_inputs(layer: Any, inputs: Tensor, kept: Tensor) -> nn.Linear:
    """A linear layer of some of the inputs that gives what the whole layer gave, by ridge regression.

    Args:
        layer: of m inputs.
        inputs: [R, m], of which it is fitted.
        kept: int64 [k], places of the inputs that are left.
    """
    mean = inputs.mean(0)
    centred = inputs - mean
    second = (centred.T @ centred).double() / len(inputs)
    inner = second[kept][:, kept]
    ridge = RIDGE * inner.diagonal().mean()
    found = torch.linalg.solve(inner + ridge * torch.eye(len(kept)).double(), second[kept])  # [k, m]
    smaller = nn.Linear(len(kept), layer.out_features)
    with torch.no_grad():
        smaller.weight.copy_(layer.weight.double() @ found.T)
        smaller.bias.copy_(layer.bias + layer.weight @ mean - smaller.weight @ mean[kept])
    return smaller


def rows_of(layer: Any, places: Tensor) -> nn.Linear:
    """A linear layer of some of the outputs."""
    smaller = nn.Linear(layer.in_features, len(places))
    with torch.no_grad():
        smaller.weight.copy_(layer.weight[places])
        smaller.bias.copy_(layer.bias[places])
    return smaller


def inputs_of(block: Any, layer: nn.Module, tokens: Tensor) -> Tensor:
    """The inputs [R, m] of a layer in a block that runs on tokens [B, N, d]."""
    caught: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    in_chunks(block, tokens)
    hook.remove()
    return torch.cat([part.flatten(0, 1) for part in caught])


def in_chunks(block: Any, tokens: Tensor) -> Tensor:
    """The tokens [B, N, d] after a block."""
    return torch.cat([block(chunk) for chunk in tokens.split(CHUNK)])


def drop_neurons(block: Any, tokens: Tensor, share: float) -> None:
    """Drop a share of the MLP's neurons."""
    given = inputs_of(block, block.mlp.fc2, tokens)
    score = given.square().mean(0) * block.mlp.fc2.weight.square().sum(0)
    kept = score.argsort(descending=True)[: round((1 - share) * len(score))].sort().values
    block.mlp.fc2 = without_inputs(block.mlp.fc2, given, kept)
    block.mlp.fc1 = rows_of(block.mlp.fc1, kept)


def drop_heads(block: Any, tokens: Tensor, count: int) -> None:
    """Drop attention heads."""
    attention = block.attn
    given = inputs_of(block, attention.proj, tokens)  # [R, heads * width]
    width = attention.head_dim
    added = [
        (given[:, head * width : (head + 1) * width] @ part.T).square().mean()
        for head, part in enumerate(attention.proj.weight.split(width, dim=1))
    ]
    heads = torch.stack(added).argsort(descending=True)[: len(added) - count].sort().values
    kept = (heads[:, None] * width + torch.arange(width)).flatten()
    whole = attention.num_heads * width
    attention.proj = without_inputs(attention.proj, given, kept)
    attention.qkv = rows_of(attention.qkv, torch.cat([part * whole + kept for part in range(3)]))
    attention.num_heads, attention.attn_dim = len(heads), len(kept)


def pruned(whole: Prefix, pixels: Tensor, neurons: float, heads: int) -> Prefix:
    """The prefix without a share of its neurons and some of its heads in every block, fitted on pixels."""
    tokens, blocks = whole.backbone.stem(pixels), []
    for block in whole.blocks:
        smaller = copy.deepcopy(block)
        if heads:
            drop_heads(smaller, tokens, heads)
        if neurons:
            drop_neurons(smaller, tokens, neurons)
        freeze_linears(smaller)
        tokens = in_chunks(smaller, tokens)
        blocks.append(smaller.eval())
    names = [f"{neurons:.0%} of neurons" if neurons else "", f"{heads} heads" if heads else ""]
    return Prefix("without " + " and ".join(name for name in names if name), whole.backbone, blocks)


def without_blocks(whole: Prefix, pixels: Tensor, count: int) -> Prefix:
    """The prefix without the blocks that turn tokens least; the first and the last stay."""
    outputs = [whole.backbone.stem(pixels), *whole.outputs(pixels, len(whole.blocks))]
    turned = [
        float(1 - F.cosine_similarity(before, after, dim=-1).mean()) for before, after in pairwise(outputs)
    ]
    inner = sorted(range(1, len(turned) - 1), key=turned.__getitem__)
    kept = [block for place, block in enumerate(whole.blocks) if place not in inner[:count]]
    return Prefix(f"without {count} blocks: {sorted(inner[:count])}", whole.backbone, kept)
