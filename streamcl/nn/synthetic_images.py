"""Synthetic images: grids of random colours from coarse to fine, the same in every process."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from streamcl.events import Pixels

GRIDS = (2, 4, 9, 18, 35)
"""Cells a side of the grids that are added, with random weights: an image has large and small structure."""
CONTRAST = 60
"""Standard deviation of an image's values; their mean is 128."""


def synthetic_images(count: int, side: int, *, seed: int = 0) -> list[Pixels]:
    """Return images, uint8 [side, side, 3], of nothing: no data is in them."""
    random = np.random.Generator(np.random.PCG64(seed))
    images = []
    for _ in range(count):
        image = torch.zeros(1, 3, side, side)
        for cells in GRIDS:
            grid = torch.from_numpy(random.standard_normal((1, 3, cells, cells))).float()
            larger = F.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
            image += float(random.exponential()) * larger
        values = 128 + CONTRAST * (image - image.mean()) / image.std()
        images.append(values[0].permute(1, 2, 0).clamp(0, 255).to(torch.uint8).numpy())
    return images
