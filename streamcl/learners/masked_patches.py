"""Hides patches of images from the frozen backbone, and describes each by the tokens of the others."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl.events import Sample
from streamcl.heads.patch_decoder import HiddenPatches, rows_at
from streamcl.heads.solving import random_projection
from streamcl.learners.block_features import pad_to_chunks
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute

REACH = 0.7
"""Standard deviation, in patches, of the weights by which seen patches stand for a hidden one."""


class MaskedPatchReader:
    """Reads images with a share of their patches hidden, as a masked autoencoder does (arXiv 2111.06377).

    The tokens of hidden patches are dropped before the first block, so nothing of them reaches a context. A
    context is the mean of the seen patches' tokens, weighted by how near they are, the token of the patch
    above, below, at the left and at the right, in a quarter of the width by a random projection (zero where
    it is hidden too, and whether it is not), the place in the grid, and a constant. Tokens are
    layer-normalised. Which patches are hidden follows from the seed and the sample's id alone, so a sample
    has the same contexts whenever it is read.

    Args:
        backbone: a frozen transformer with a `grid`, which places tokens before its blocks.
        compute: device, precision and the number of images in a pass.
        block: the number of the last block that is run.
        hidden: the share of the patches that is hidden; at least one is, and at least one is not.
        cells: a patch's pixels are averaged to so many values a side.
        seed: of the choice of patches and of the projection.
    """

    def __init__(
        self, backbone: Backbone, compute: Compute, *, block: int, hidden: float, cells: int, seed: int
    ) -> None:
        if backbone.grid is None:
            raise ValueError(f"{backbone.name} has no grid of patches of which some could be hidden")
        self.backbone, self.compute, self.block, self.cells = backbone, compute, block, cells
        self.prefix, self.rows, self.columns = backbone.grid
        count = self.rows * self.columns
        self.hidden = min(max(round(hidden * count), 1), count - 1)
        self._nearness = _nearness(self.rows, self.columns).to(compute.device)
        self._adjacent = _adjacent(self.rows, self.columns).to(compute.device)
        self._one_hot = torch.eye(count, device=compute.device)
        self._projection = self._projected_by(seed).to(compute.device)
        self._seed = seed

    @property
    def context_width(self) -> int:
        """D: the near tokens' mean, four adjacent ones, which of these are seen, the place, a constant."""
        width, projected = self._projection.shape
        return width + 4 * projected + 4 + self.rows * self.columns + 1

    @property
    def values(self) -> int:
        """V: the numbers of a patch."""
        return 3 * self.cells**2

    def __call__(self, samples: Sequence[Sample]) -> HiddenPatches:
        """Return the hidden patches of B samples, one or more, whichever come together."""
        chunks = map(self._read, pad_to_chunks(samples, self.compute))
        return HiddenPatches.concatenated(chunks).at(slice(len(samples)))

    def places(self, samples: Sequence[Sample]) -> Tensor:
        """Return int64 [B, M]: the patches that are hidden in each sample, ascending."""
        return torch.from_numpy(np.stack([self._places(each.id) for each in samples])).to(self.compute.device)

    def seen_tokens(self, images: Tensor, places: Tensor) -> Tensor:
        """Return the tokens that enter the first block, [B, p + K, d]: p of no patch, K of seen patches.

        Args:
            images: [B, 3, S, S], as the backbone prepares them.
            places: int64 [B, M], the hidden patches.
        """
        tokens = self.backbone.stem(images)
        seen = rows_at(tokens[:, self.prefix :], self._seen(places))
        return torch.cat([tokens[:, : self.prefix], seen], dim=1)

    def contexts(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Return float32 [B, M, D], the contexts of hidden patches.

        Args:
            tokens: [B, p + K, d], after the last block.
            places: int64 [B, M], the hidden patches.
        """
        patches = F.layer_norm(tokens[:, self.prefix :].float(), tokens.shape[-1:])  # [B, K, d]
        seen, count = self._seen(places), len(self._nearness)
        near = self._nearness[places[:, :, None], seen[:, None]]  # [B, M, K]
        around = (near / near.sum(2, keepdim=True)) @ patches
        columns = self._projection.shape[1] + 1
        grid = patches.new_zeros(len(patches), count + 1, columns)  # the last row stands for no patch
        shown = torch.cat([patches @ self._projection, torch.ones_like(patches[..., :1])], dim=2)
        grid.scatter_(1, seen[..., None].expand_as(shown), shown)
        beside = rows_at(grid, self._adjacent[places].flatten(1)).unflatten(1, (-1, 4)).flatten(2)
        place = self._one_hot[places]
        return torch.cat([around, beside, place, torch.ones_like(place[..., :1])], dim=2)

    def all_patches(self, images: Tensor) -> Tensor:
        """Return float32 [B, rows * columns, V], every patch, 0 to 1.

        Args:
            images: [B, 3, S, S], as the backbone prepares them.
        """
        size = (self.rows * self.cells, self.columns * self.cells)
        cells = F.adaptive_avg_pool2d(self.backbone.levels(images) / 255, size)
        tiles = cells.unflatten(3, (self.columns, self.cells)).unflatten(2, (self.rows, self.cells))
        tiles = tiles.permute(0, 2, 4, 1, 3, 5)  # from [B, 3, r, cells, c, cells]
        return torch.as_tensor(tiles.flatten(3).flatten(1, 2))

    def pictures(self, patches: Tensor) -> Tensor:
        """Return [B, rows * cells, columns * cells, 3], pictures put together.

        Args:
            patches: [B, rows * columns, V], every patch.
        """
        tiles = patches.unflatten(2, (3, self.cells, self.cells)).unflatten(1, (self.rows, self.columns))
        tiles = tiles.permute(0, 1, 4, 2, 5, 3)  # from [B, r, c, 3, cells, cells]
        return torch.as_tensor(tiles.flatten(3, 4).flatten(1, 2))

    def _projected_by(self, seed: int) -> Tensor:
        """Return [d, d / 4], a random projection that keeps the mean square of a token's numbers."""
        width = int(self.backbone.qkv(self.backbone.blocks[self.block]).weight.shape[1])
        return random_projection(width, max(width // 4, 1), seed) / math.sqrt(width)

    def _places(self, name: str) -> npt.NDArray[np.int64]:
        digest = hashlib.sha256(f"{self._seed} {name}".encode()).digest()
        order = np.random.Generator(np.random.PCG64(int.from_bytes(digest))).permutation(len(self._nearness))
        return np.sort(order[: self.hidden])

    def _seen(self, places: Tensor) -> Tensor:
        """Return int64 [B, K], the patches that are not hidden, ascending."""
        seen = torch.ones(len(places), len(self._nearness), dtype=torch.bool, device=places.device)
        return seen.scatter_(1, places, False).nonzero()[:, 1].view(len(places), -1)

    def _read(self, samples: Sequence[Sample]) -> HiddenPatches:
        places = self.places(samples)
        with torch.no_grad(), self.compute.autocast():
            images = self.backbone.prepare([sample.image for sample in samples])
            # not compiled: another number of tokens would be compiled anew
            plain = [partial(block) for block in self.backbone.blocks]
            outputs = self.backbone.run(self.seen_tokens(images, places), 0, self.block + 1, plain)
        return HiddenPatches(self.contexts(outputs[-1], places), self.all_patches(images), places)


def _adjacent(rows: int, columns: int) -> Tensor:
    """Return int64 [N, 4], the patches above, below, at the left and at the right; N where there is none."""
    grid = torch.full((rows + 2, columns + 2), rows * columns)
    grid[1:-1, 1:-1] = torch.arange(rows * columns).view(rows, columns)
    sides = (grid[:-2, 1:-1], grid[2:, 1:-1], grid[1:-1, :-2], grid[1:-1, 2:])
    return torch.stack(sides, dim=2).flatten(0, 1)


def _nearness(rows: int, columns: int) -> Tensor:
    """Return [N, N], exp(-distance^2 / (2 REACH^2)) between the patches of a grid."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    points = torch.stack([row, column], dim=2).flatten(0, 1).float()  # [N, 2]
    return (-torch.cdist(points, points).square() / (2 * REACH**2)).exp()
