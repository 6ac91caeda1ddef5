"""Low-rank updates of both FFN linears of adapted blocks, which live only while an erasure is under way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamcl.forgetting.methods.proximal import norm
from streamcl.nn.adapted_blocks import Adapters

FFN = ("mlp.fc1", "mlp.fc2")


class LowRank(nn.Module):
    """y = W x + b + B A x around a linear layer; A is random and stays, B begins at zero: it adds nothing.

    A is left as drawn (LoRA-FA, arXiv 2308.03303), so that the change is zero exactly where B is. Were A to
    shrink too, its fall would take B's gradient with it: useful groups died before they had done a thing.
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
        """[..., in] to [..., out]."""
        return torch.as_tensor(self.linear(x)) + F.linear(F.linear(x, self.lora_A), self.lora_B)

    @torch.no_grad()
    def folded(self) -> Tensor:
        """W + B A, rounded once."""
        gain = self.lora_B.double() @ self.lora_A.double()
        return (self.linear.weight.double() + gain).to(self.linear.weight.dtype)


class FFNBlock:
    """The two low-rank updates of one block: one group."""

    def __init__(self, name: str, layers: dict[str, LowRank]) -> None:
        self.name = name
        self.layers = layers

    @property
    def group(self) -> list[nn.Parameter]:
        """All entries of the block that are learned."""
        return [layer.lora_B for layer in self.layers.values()]

    @property
    def norm(self) -> float:
        """The group's norm; exactly zero where the block is left as it was."""
        return norm(self.group)


def refusal(adapters: Adapters) -> str | None:
    """Why the FFN of these blocks cannot be adapted; None where it can."""
    for name in adapters.block_names:
        for part in FFN:
            if not adapters.has_linear(f"{name}.{part}"):
                return f"{name} has no linear layer {part}: a gated FFN with split weights is not supported"
    return None


@contextmanager
def attached(
    adapters: Adapters, names: Sequence[str], rank: int, generator: torch.Generator
) -> Iterator[list[FFNBlock]]:
    """The named blocks with updates of both FFN linears in place; on leaving they are taken out again."""
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


def fold(adapters: Adapters, blocks: Sequence[FFNBlock]) -> int:
    """Give every block whose group is not zero its changed weights; how many there were. After `attached`."""
    changed = [block for block in blocks if block.norm > 0]
    for block in changed:
        for path, layer in block.layers.items():
            adapters.set_weight(path, layer.folded())
    return len(changed)


def _set(adapters: Adapters, blocks: Sequence[FFNBlock], layers: Sequence[Sequence[nn.Module]]) -> None:
    modules = dict(zip(adapters.block_names, adapters.blocks, strict=True))
    for block, pair in zip(blocks, layers, strict=True):
        module = modules[block.name]
        for path, layer in zip(block.layers, pair, strict=True):
            module.set_submodule(path.removeprefix(f"{block.name}."), layer)
