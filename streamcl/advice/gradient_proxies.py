"""Zero-shot proxies from gradients at the weights as they are: ZiCo, SNIP and the norm of the gradient.

ZiCo: Li et al., ICLR 2023 (arXiv 2301.11300). SNIP: Lee et al., ICLR 2019 (arXiv 1810.02340). They are
meant to rank networks before training; of pretrained ones they say less than a head that is fitted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamcl.nn.backbone import Backbone

BATCHES, BATCH = 4, 16
"""Batches whose gradients are compared, and images of each. Of two batches, as in the reference code, the
deviation is half of their difference, so that a few weights with nearly equal gradients decide the score."""
MIN_DEVIATION = 0.01
"""Smallest standard deviation of a weight's gradients, as a share of their mean: the quotient's bound."""


class GradientProxies(NamedTuple):
    """ZiCo, the norm of the mean gradient, and SNIP's sum of |weight * gradient|."""

    zico: float
    grad_norm: float
    snip: float


def gradient_proxies(weights: Sequence[Tensor], batches: Iterable[Sequence[Tensor]]) -> GradientProxies:
    """Return the proxies of a network.

    ZiCo is the sum over layers of log(sum over weights of mean |g| / std |g|), over batches; the standard
    deviation is that of a sample, and layers and weights without a gradient add nothing.

    Args:
        weights: of each layer, of any shape.
        batches: of each batch the gradients of the weights, of any shape; two or more.
    """
    gradients = [0.0 * weight for weight in weights]
    sizes, squares, count = [g.clone() for g in gradients], [g.clone() for g in gradients], 0
    for count, batch in enumerate(batches, 1):  # noqa: B007 - the last one is the number of batches
        for layer, gradient in enumerate(batch):
            gradients[layer] += gradient
            sizes[layer] += gradient.abs()
            squares[layer] += gradient.square()
    zico = 0.0
    for size, square in zip(sizes, squares, strict=True):
        mean = size / count
        variance = (square / count - mean.square()).clamp(min=0) * count / (count - 1)
        deviation = torch.maximum(variance.sqrt(), MIN_DEVIATION * mean)
        total = float((mean / deviation)[mean > 0].sum())
        zico += math.log(total) if total > 0 else 0.0
    norm = math.sqrt(sum(float((gradient / count).square().sum()) for gradient in gradients))
    snip = sum(
        float((weight * gradient / count).abs().sum())
        for weight, gradient in zip(weights, gradients, strict=True)
    )
    return GradientProxies(zico, norm, snip)


def layer_weights(backbone: Backbone, depth: int) -> list[Tensor]:
    """Return the weights [o, d] and [o, c, p, p] of linear and convolutional layers up to some depth."""
    parts = [backbone.model.patch_embed, *backbone.blocks[:depth]]
    layers = (layer for part in parts for layer in part.modules())
    return [layer.weight for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)]


def batch_gradients(
    backbone: Backbone, depth: int, pixels: Tensor, targets: Tensor, seed: int = 0
) -> Iterator[Sequence[Tensor]]:
    """Yield the gradients of `layer_weights`, of any shape, for each batch.

    They are those of the cross-entropy of a random linear head.

    The head reads the tokens that a ridge head reads of the last block. The backbone is as it was afterwards.

    Args:
        backbone: frozen; products are in float32.
        depth: blocks that are run.
        pixels: [B, 3, S, S], as `Backbone.prepare` gives them.
        targets: int64 [B].
        seed: of the head.
    """
    weights = layer_weights(backbone, depth)
    generator = torch.Generator().manual_seed(seed)
    head: Tensor | None = None
    for part, labels in zip(pixels.split(BATCH), targets.split(BATCH), strict=True):
        try:
            for weight in weights:
                weight.requires_grad_(True)
            tokens = backbone.run(backbone.stem(part), 0, depth)[-1]
            rows = backbone.class_and_centre_tokens(tokens).float()
            if head is None:
                shape = (int(targets.max()) + 1, rows.shape[1])
                head = torch.randn(shape, generator=generator).to(rows) / math.sqrt(rows.shape[1])
            loss = F.cross_entropy(rows @ head.T, labels.to(rows.device))
            yield torch.autograd.grad(loss, weights)
        finally:
            for weight in weights:
                weight.requires_grad_(False)
