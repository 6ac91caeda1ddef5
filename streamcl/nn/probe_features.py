"""Features of a few synthetic images, which change with the weights, the image processing or a library."""

from __future__ import annotations

import numpy as np
import torch

from streamcl.events import Pixels
from streamcl.nn.backbone import Backbone
from streamcl.storage.plain_state import Array

SHAPES = ((48, 64), (97, 61), (224, 224))
"""Height and width of each: one is enlarged, one has another aspect, one is reduced. Three images are no
size of batch for which blocks are compiled."""


def probe_images() -> list[Pixels]:
    """Return the images, uint8 [H, W, 3]: noise on slopes, the same in every process."""
    random = np.random.Generator(np.random.PCG64(0))
    images = []
    for height, width in SHAPES:
        slope = np.add.outer(120 * np.arange(height) // height, 60 * np.arange(width) // width)[..., None]
        images.append((slope + random.integers(0, 76, (height, width, 3))).astype(np.uint8))
    return images


def probe_features(backbone: Backbone) -> Array:
    """Return the final features, float64 [3, width], computed in float32 whatever the run's precision is."""
    device = backbone.device.type
    with torch.no_grad(), torch.autocast(device, enabled=False):
        tokens = backbone.stem(backbone.prepare(probe_images()))
        return backbone.forward_head(tokens).double().cpu().numpy()
