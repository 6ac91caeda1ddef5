"""The features of every block of a backbone, from one pass of images at its largest depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from streamcl.events import Sample
from streamcl.learners.block_features import FrozenReader, concat_width
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute


@dataclass(frozen=True, slots=True)
class BackboneSizes:
    """The sizes of a backbone.

    tokens: of an image, N. width: of a token, d. parameters: of the stem and the norm, then of each block.
    features: of each block. has_stages: whether its blocks differ, as in swin.
    """

    tokens: int
    width: int
    parameters: tuple[int, ...]
    features: tuple[int, ...]
    has_stages: bool

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.features)

    @classmethod
    def of(cls, backbone: Backbone) -> BackboneSizes:
        """Return the sizes of a backbone."""
        blocks = [sum(each.numel() for each in block.parameters()) for block in backbone.blocks]
        stem = sum(each.numel() for each in backbone.parameters()) - sum(blocks)
        grid = backbone.grid
        side = backbone.image_size // patch_side(backbone)
        return cls(
            tokens=side * side if grid is None else grid[0] + grid[1] * grid[2],
            width=backbone.width,
            parameters=(stem, *blocks),
            features=tuple(concat_width(backbone, [block]) for block in range(backbone.depth)),
            has_stages=grid is None,
        )


def patch_side(backbone: Backbone) -> int:
    """Return the side of a patch in pixels."""
    return int(backbone.model.patch_embed.patch_size[0])


class BlockTokens:
    """Collects the features of every block of a backbone, chunk by chunk.

    Attributes: backbone, and its sizes.
    """

    def __init__(self, backbone: Backbone, compute: Compute, tta_views: int) -> None:
        self.backbone, self.sizes = backbone, BackboneSizes.of(backbone)
        self._reader = FrozenReader(backbone, compute, range(backbone.depth), tta_views=tta_views)
        self._chunks: list[Tensor] = []

    def read(self, samples: Sequence[Sample]) -> None:
        """Add the features of samples, one or more."""
        self._chunks.append(self._reader(samples).cpu())

    def of_blocks(self, blocks: Sequence[int]) -> Tensor:
        """Return the features [N, D] of some blocks, side by side, of all samples that were read."""
        ends = list(pairwise([0, *accumulate(self.sizes.features)]))
        parts = [slice(*ends[block]) for block in blocks]
        return torch.cat([torch.cat([chunk[:, part] for part in parts], dim=1) for chunk in self._chunks])
