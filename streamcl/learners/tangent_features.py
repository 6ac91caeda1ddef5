"""Tangent features: how the scores of frozen adapters would move with LoRA, sketched, one row a sample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from streamcl.learners.adapted_branch import AdaptedBranch
from streamcl.learners.block_features import map_chunks
from streamcl.nn.lora import LoRALinear


class TangentReader:
    """J-features of a frozen branch (linearised user weights, arXiv 2012.13431).

    The branch has folded its adapters and drawn fresh pairs, A random and B zero. Around that point a score
    g(x) moves by <dg/dB, B>, in the last `linearised_blocks` blocks here (dg/dA is zero there). g is a
    random reading of the last block's tokens, the same for every class: the tangent kernel of C scores is
    taken to be that of one, for each of them (arXiv 2206.12543). dg/dB, two projections a block and [o, r]
    each, is reduced to `width` numbers by a Gaussian sketch, which keeps inner products up to
    1 / sqrt(width), and each row to a root mean square of 1. Reading and sketch come from `seed`; nothing
    here is ever trained, and what a sample is mapped to depends on nothing but the sample and the frozen
    branch.

    Attributes:
        layers: the linearised layers, from the lowest on.
        reading: float32 [2 d, 1], of the class token beside the mean of the central patch tokens.
        sketches: for each layer, float32 [B's numbers, width].
    """

    def __init__(
        self, branch: AdaptedBranch, *, width: int, linearised_blocks: int = 1, seed: int = 0
    ) -> None:
        self.branch = branch
        self.width = width
        adapters, backbone = branch.adapters, branch.backbone
        self._count = min(linearised_blocks, len(adapters.layers))
        self.layers = adapters.layers[-self._count :]
        generator = torch.Generator().manual_seed(seed)
        self.reading = _gaussian(2 * backbone.width, 1, generator).to(backbone.device)
        self.sketches = [
            _gaussian(layer.lora_B.numel(), width, generator).to(backbone.device) for layer in self.layers
        ]

    @property
    def fixed(self) -> bool:
        """Whether the branch is frozen, so that it has tangent features."""
        return self.branch.frozen

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return tangent features, float32 [B, width], without gradients.

        Args:
            tokens: [B, N, d], the input of the branch's first block.
        """
        return map_chunks(self._rows, tokens, self.branch.compute)

    def _rows(self, tokens: Tensor) -> Tensor:
        backbone, adapters = self.branch.backbone, self.branch.adapters
        first, cut = adapters.first_block, backbone.depth - self._count
        blocks = list(adapters.blocks)
        with torch.no_grad(), self.branch.compute.autocast():
            before = backbone.run(tokens, first, cut, blocks)
        entering = (before[-1] if before else tokens).detach().requires_grad_(True)
        with torch.enable_grad(), self._watched() as seen:
            with self.branch.compute.autocast():
                last = backbone.run(entering, cut, None, blocks[cut - first :])[-1]
            score = backbone.class_and_centre_tokens(last) @ self.reading  # [B, 1]
            slopes = torch.autograd.grad(score.sum(), [output for _, output in seen])
        rows = [
            self._slope(layer, given, slope) @ sketch
            for layer, (given, _), slope, sketch in zip(self.layers, seen, slopes, self.sketches, strict=True)
        ]
        row = torch.stack(rows).sum(0).detach()
        return row / row.square().mean(1, keepdim=True).sqrt().clamp(min=1e-30)

    @contextmanager
    def _watched(self) -> Iterator[Sequence[tuple[Tensor, Tensor]]]:
        """Inputs and outputs of the layers meanwhile, in the order of depth."""
        seen: list[tuple[Tensor, Tensor]] = []
        hooks = [
            layer.register_forward_hook(lambda _, given, output: seen.append((given[0], output)))
            for layer in self.layers
        ]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    @staticmethod
    @torch.no_grad()
    def _slope(layer: LoRALinear, given: Tensor, slope: Tensor) -> Tensor:
        """dg/dB_q and dg/dB_v [B, 2 o r], from a layer's input [B, ..., d] and the slope of its output."""
        rank, down = layer.rank, layer.lora_A.detach().float()
        h = given.flatten(1, -2).float() @ down.T  # [B, N, 2r]: A_q x beside A_v x
        query, _, value = slope.flatten(1, -2).float().chunk(3, dim=-1)  # [B, N, o] each
        pairs = ((query, h[..., :rank]), (value, h[..., rank:]))
        return torch.cat([(each.mT @ low).flatten(1) for each, low in pairs], dim=1)


def _gaussian(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator) / math.sqrt(columns)
