"""Features for closed-form heads: pooled tokens of several blocks side by side, over views of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl.events import Sample
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute

DETECTOR_WIDTH = 384
"""Number of features that a detector gets: few, since their means over batches are part of its state."""
CROPPED_BORDER = 0.1
"""Share of each side that the second view leaves out."""


def concat_block_tokens(
    backbone: Backbone, outputs: Sequence[Tensor], blocks: Sequence[int], first: int = 0
) -> Tensor:
    """Return float32 [B, F]: class token and central patch token of each block, layer-normalised.

    Args:
        backbone: the frozen transformer.
        outputs: [B, N, d], of every block from `first` to the last in `blocks`, in order.
        blocks: numbers of the blocks that are read.
        first: the number of the block that gave `outputs[0]`.
    """
    return torch.cat(
        [backbone.class_and_centre_tokens(outputs[block - first]).float() for block in blocks], dim=1
    )


def concat_width(backbone: Backbone, blocks: Sequence[int]) -> int:
    """Return F of `concat_block_tokens`: two tokens of each block, which differ in width between stages."""
    return sum(2 * backbone.qkv(backbone.blocks[block]).weight.shape[1] for block in blocks)


def evenly_spaced_blocks(depth: int, count: int = 4) -> list[int]:
    """Return every second of the last blocks: 4, 6, 8, 10 of 11. Neighbours serve a linear head alike."""
    return sorted(block for block in range(depth - 1, -1, -2)[:count])


def tta_views(pixels: Tensor, count: int) -> list[Tensor]:
    """Return views [B, 3, S, S] of images.

    They are the image, the mirrored image without a tenth at each border, the mirrored image, and the image
    without a tenth at each border.

    Args:
        pixels: [B, 3, S, S].
        count: 1, 2 or 4, of which the first are returned.
    """
    if count == 1:
        return [pixels]
    side = pixels.shape[-1]
    edge = max(1, int(side * CROPPED_BORDER))
    inner = pixels[..., edge : side - edge, edge : side - edge]
    mirrored = F.interpolate(inner.flip(-1), (side, side), mode="bicubic", align_corners=False)
    if count == 2:
        return [pixels, mirrored]
    return [
        pixels,
        mirrored,
        pixels.flip(-1),
        F.interpolate(inner, (side, side), mode="bicubic", align_corners=False),
    ]


def mean_over_views(features: Tensor, count: int) -> Tensor:
    """Return [B, F], the mean over the views of each image.

    Args:
        features: [V * B, F], all images of one view after all of another.
        count: V, the number of views.
    """
    return features.view(count, len(features) // count, -1).mean(0)


def detector_features(features: Tensor) -> npt.NDArray[np.float32]:
    """Return [B, d] of features [B, F], of the earliest block, which separates domains best."""
    return features[:, :DETECTOR_WIDTH].float().cpu().numpy()


def pad_to_chunks(samples: Sequence[Sample], compute: Compute) -> list[list[Sample]]:
    """Return the samples in the chunks of `compute`, the last filled up with its last sample."""
    sizes = compute.chunk_sizes(len(samples))
    whole = [*samples, *[samples[-1]] * (sum(sizes) - len(samples))]
    ends = accumulate(sizes)
    return [whole[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def map_chunks(run: Callable[[Tensor], Tensor], tokens: Tensor, compute: Compute) -> Tensor:
    """Return [B, ...], the results of `run` in one tensor.

    Args:
        run: called with the rows of one chunk of `compute`, the last chunk padded; returns a row for each.
        tokens: [B, N, d].
        compute: gives the number of rows of each call.
    """
    sizes = compute.chunk_sizes(len(tokens))
    whole = torch.cat([tokens, tokens[-1:].expand(sum(sizes) - len(tokens), *tokens.shape[1:])])
    return torch.cat([run(chunk) for chunk in whole.split(sizes)])[: len(tokens)]


class FeatureReader(Protocol):
    """Maps samples to the features of a closed-form learner."""

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        """Return float32 [B, F], always the same for the same sample but where chunks fit requests."""


@runtime_checkable
class PrefixReader(FeatureReader, Protocol):
    """A reader that also gives the tokens between two blocks, for a branch that begins there."""

    def read(self, samples: Sequence[Sample], cut: int) -> tuple[Tensor, list[Tensor]]:
        """Return the features [B, F] and, for each view, the input tokens [B, N, d] of block `cut`."""


class FrozenReader:
    """Reads the concatenated tokens of a frozen backbone's blocks, averaged over the views."""

    def __init__(
        self, backbone: Backbone, compute: Compute, blocks: Sequence[int], *, tta_views: int = 1
    ) -> None:
        self.backbone = backbone
        self.compute = compute
        self.blocks = tuple(sorted(blocks))
        self.tta_views = tta_views

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        """Return float32 [B, F] of B samples, one or more, whichever come together."""
        chunks = pad_to_chunks(samples, self.compute)
        return torch.cat([self._read(chunk, 0)[0] for chunk in chunks])[: len(samples)]

    def read(self, samples: Sequence[Sample], cut: int) -> tuple[Tensor, list[Tensor]]:
        """Return the features [B, F] and, for each view, the input tokens [B, N, d] of block `cut`."""
        parts = [self._read(chunk, cut) for chunk in pad_to_chunks(samples, self.compute)]
        views = zip(*(tokens for _, tokens in parts), strict=True)
        features = torch.cat([part for part, _ in parts])[: len(samples)]
        return features, [torch.cat(view)[: len(samples)] for view in views]

    def _read(self, samples: Sequence[Sample], cut: int) -> tuple[Tensor, list[Tensor]]:
        with torch.no_grad(), self.compute.autocast():
            views = tta_views(self.backbone.prepare([sample.image for sample in samples]), self.tta_views)
            tokens = self.backbone.stem(torch.cat(views))  # [V * B, N, d]
            outputs = self.backbone.run(tokens, 0, self.blocks[-1] + 1)
            fused = mean_over_views(concat_block_tokens(self.backbone, outputs, self.blocks), len(views))
            return fused, list([tokens, *outputs][cut].chunk(len(views)))
