"""Steps timed beside streamcl's loop by `throughput.py`: forward only, bare LoRA, and the reference's.

Nothing here is streamcl's but the frozen backbone, so the floor stays where it is while streamcl changes.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute

RATE, LAMBDA, RANK, CLASSES = 5e-4, 2000.0, 4, 100


class Plain(nn.Module):
    """A frozen qkv projection and rank-4 LoRA on q and v, as one writes it: two products for both pairs."""

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.frozen, width = frozen, frozen.in_features
        self.A = nn.Parameter(torch.randn(2 * RANK, width, device=frozen.weight.device) / width**0.5)
        self.B = nn.Parameter(torch.zeros(2, width, RANK, device=frozen.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        query, value = self.B
        none = torch.zeros_like(query)
        rows = torch.cat(
            [torch.cat([query, none], 1), torch.cat([none, none], 1), torch.cat([none, value], 1)]
        )
        qkv: Tensor = self.frozen(x)
        return qkv + F.linear(F.linear(x, self.A), rows)


class Separate(nn.Module):
    """The reference's layer after a consolidation: a frozen and a live pair for q and for v, each apart."""

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.frozen = frozen
        self.q_old, self.v_old = (self._pair().requires_grad_(False) for _ in range(2))
        self.q_new, self.v_new = (self._pair() for _ in range(2))

    def _pair(self) -> nn.Sequential:
        width = self.frozen.in_features
        down, up = nn.Linear(width, RANK, bias=False), nn.Linear(RANK, width, bias=False)
        return nn.Sequential(down, up).to(self.frozen.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        width = self.frozen.in_features
        qkv: Tensor = self.frozen(x)
        qkv[..., :width] += self.q_old(x) + self.q_new(x)
        qkv[..., 2 * width :] += self.v_old(x) + self.v_new(x)
        return qkv


class Bare:
    """The backbone with every qkv replaced for the time of a step, a linear head, and Adam."""

    layer: type[nn.Module] = Plain

    def __init__(self, backbone: Backbone, compute: Compute) -> None:
        self.backbone, self.compute = backbone, compute
        self.own = [backbone.qkv(block) for block in backbone.blocks]
        self.layers = [self.layer(each) for each in self.own]
        self.head = nn.Linear(backbone.width, CLASSES).to(backbone.device)
        mine = [p for module in (*self.layers, self.head) for p in module.parameters()]
        self.trained = [p for p in mine if p.requires_grad]
        self.optimizer = torch.optim.Adam([p for p in self.trained if not _is_frozen(p, self.own)], lr=RATE)

    def logits(self, pixels: Tensor) -> Tensor:
        """The model's own forward pass, adapted."""
        with self.compute.autocast():
            tokens = self.backbone.run(self.backbone.stem(pixels))[-1]
            scores: Tensor = self.head(self.backbone.final(tokens))
            return scores

    def step(self, pixels: Tensor, targets: Tensor) -> None:
        """Forward, backward, Adam."""
        self._into(self.layers)
        try:
            self.optimizer.zero_grad(set_to_none=True)
            self.loss(pixels, targets).backward()
            self.optimizer.step()
        finally:
            self._into(self.own)

    def loss(self, pixels: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of pixels [B, 3, H, W] with targets int64 [B], in nats."""
        return F.cross_entropy(self.logits(pixels).float(), targets)

    def _into(self, layers: list[Any]) -> None:
        for block, layer in zip(self.backbone.blocks, layers, strict=True):
            block.attn.qkv = layer  # type: ignore[union-attr]


class Forward(Bare):
    """The frozen backbone alone, without gradients."""

    def step(self, pixels: Tensor, targets: Tensor) -> None:  # noqa: ARG002
        with torch.no_grad():
            self.logits(pixels)


class Reference(Bare):
    """The step of Online-LoRA's published code (arXiv 2411.05663) once its buffer is full.

    Four whole mini-batches in the hard buffer, each with a forward pass of its own; the penalty on every
    trained factor; adapters that were frozen at a consolidation kept as separate layers.
    """

    layer = Separate

    def __init__(self, backbone: Backbone, compute: Compute) -> None:
        super().__init__(backbone, compute)
        self.held: deque[tuple[Tensor, Tensor]] = deque(maxlen=4)
        self.omega = [torch.zeros_like(p) for p in self.trained]

    def loss(self, pixels: Tensor, targets: Tensor) -> Tensor:
        if len(self.held) < 4:
            self.held.extend([(pixels, targets)] * 4)
        losses = [super(Reference, self).loss(*one) for one in [(pixels, targets), *self.held]]
        self.held.append((pixels, targets))
        penalty = sum((w * p**2).sum() for w, p in zip(self.omega, self.trained, strict=True))
        return torch.stack(losses).sum() + LAMBDA / 2 * penalty


def _is_frozen(parameter: Tensor, layers: list[Any]) -> bool:
    return any(parameter is each for layer in layers for each in layer.parameters())
