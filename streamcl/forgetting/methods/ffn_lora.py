"""Low-rank updates of both FFN linears of adapted blocks, which live only while an erasure is under way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamcl.nn.adapted_blocks import Adapters

FFN = ("mlp.fc1", "mlp.fc2")

ParameterGroup = Sequence[Tensor]
"""Parameters whose entries share one norm, the root of the sum of all their squares."""


def norm(group: ParameterGroup) -> float:
    """Return the root of the sum of the squares of all entries of a group's parameters, of any shape."""
    return float(torch.stack([p.detach().double().square().sum() for p in group]).sum().sqrt())


class LowRank(nn.Module):
    """y = W x + b + B A x around a linear layer; A is random and stays, B begins at zero: it adds nothing.

    A is left as drawn (LoRA-FA, arXiv 2308.03303), so that the change is zero exactly where B is. If A
    shrank too, B's gradient would fall with it: useful groups reached zero before they had an effect.
    """

    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = linear
        device = linear.weight.device
        drawn = torch.randn(rank, linear.in_features, generator=generator).to(device)
        # a norm of one whatever the width, so that a step's length means the same everywhere
        self.lora_A = nn.Parameter(drawn / drawn.norm(), requires_grad=False)  # [r, in]
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))  # [out, r]

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] of x [..., in]."""
        return torch.as_tensor(self.linear(x)) + F.linear(F.linear(x, self.lora_A), self.lora_B)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """Return W + B A, [out, in], rounded once."""
        gain = self.lora_B.double() @ self.lora_A.double()
        return (self.linear.weight.double() + gain).to(self.linear.weight.dtype)


@dataclass(frozen=True, eq=False)
class FFNBlock:
    """The two low-rank updates of one block: one group."""

    name: str
    layers: dict[str, LowRank]

    @property
    def group(self) -> list[nn.Parameter]:
        """The parameters of the block that are trained."""
        return [layer.lora_B for layer in self.layers.values()]

    @property
    def norm(self) -> float:
        """The group's norm; exactly zero where the block is left as it was."""
        return norm(self.group)


def unsupported_ffn(adapters: Adapters) -> str | None:
    """Return why the FFN of these blocks cannot be adapted; None where it can."""
    for name in adapters.block_names:
        for part in FFN:
            if f"{name}.{part}" not in adapters.linears:
                return f"{name} has no linear layer {part}: a gated FFN with split weights is not supported"
    return None


@contextmanager
def attached_updates(
    adapters: Adapters, names: Sequence[str], rank: int, generator: torch.Generator
) -> Iterator[list[FFNBlock]]:
    """Yield the named blocks with updates of both FFN linears in place; on leaving these are removed."""
    blocks = []
    for name in names:
        paths = [f"{name}.{part}" for part in FFN]
        blocks.append(
            FFNBlock(name, {path: LowRank(adapters.linear(path), rank, generator) for path in paths})
        )
    try:
        _set(adapters, blocks, [list(block.layers.values()) for block in blocks])
        yield blocks
    finally:
        _set(adapters, blocks, [[low.linear for low in block.layers.values()] for block in blocks])


def merge(adapters: Adapters, blocks: Sequence[FFNBlock]) -> int:
    """Merge every group that is not zero into its block's weights; return their number.

    Called after `attached_updates`.
    """
    changed = [block for block in blocks if block.norm > 0]
    for block in changed:
        for path, layer in block.layers.items():
            adapters.set_weight(path, layer.merged())
    return len(changed)


def _set(adapters: Adapters, blocks: Sequence[FFNBlock], layers: Sequence[Sequence[nn.Module]]) -> None:
    modules = dict(zip(adapters.block_names, adapters.blocks, strict=True))
    for block, pair in zip(blocks, layers, strict=True):
        module = modules[block.name]
        for path, layer in zip(block.layers, pair, strict=True):
            module.set_submodule(path.removeprefix(f"{block.name}."), layer)
