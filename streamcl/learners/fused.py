"""Features for closed-form heads: the tokens of several frozen blocks, pooled and side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from streamcl.backbone import Backbone
from streamcl.compute import Compute
from streamcl.events import Sample


def fuse(backbone: Backbone, outputs: Sequence[Tensor], blocks: Sequence[int]) -> Tensor:
    """float32 [B, F]: class token and mean patch token of each block in `blocks`, layer-normalised.

    outputs: what every block from the first to the last in `blocks` gave, in order.
    """
    return torch.cat([backbone.pooled(outputs[block]).float() for block in blocks], dim=1)


def fused_width(backbone: Backbone, blocks: Sequence[int]) -> int:
    """F of `fuse`, read off one black image (it differs between blocks where the backbone has stages)."""
    with torch.no_grad():
        tokens = backbone.stem(backbone.prepare([np.zeros((8, 8, 3), np.uint8)]))
        return fuse(backbone, backbone.run(tokens, 0, max(blocks) + 1), blocks).shape[1]


class Reader(Protocol):
    """What a closed-form learner reads samples with."""

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        """float32 [B, F], for ever the same for the same sample."""
        ...


class FrozenReader:
    """Reads the fused tokens of a frozen backbone's blocks."""

    def __init__(self, backbone: Backbone, compute: Compute, blocks: Sequence[int]) -> None:
        self.backbone = backbone
        self.compute = compute
        self.blocks = tuple(sorted(blocks))

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        """float32 [B, F] of B samples."""
        with torch.no_grad(), self.compute.autocast():
            tokens = self.backbone.stem(self.backbone.prepare([sample.image for sample in samples]))
            outputs = self.backbone.run(tokens, 0, self.blocks[-1] + 1)
            return fuse(self.backbone, outputs, self.blocks)
