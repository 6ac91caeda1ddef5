"""A ridge head that learns images together with corrupted views of them, and predicts from images alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from streamcl.heads.ridge import RidgeHead


class ViewPairRidgeHead(RidgeHead):
    """A RidgeHead whose sums have, of each sample, a share of its robust view and the rest of the image.

    With features h of the image, r of the view and a share s: G = sum of (1 - s) h^T h + s r^T r, and
    Q = sum of ((1 - s) h + s r)^T y. A sample counts as one, so the ridge and all counts are those of a head
    without views. Learned and erased features are [N, 2 d], h and r side by side; predicted ones [N, d].

    Args:
        width: d, of the features of one view.
        robust_share: s, between 0 and 1.
        options: of `RidgeHead`.
    """

    def __init__(self, width: int, *, robust_share: float, **options: Any) -> None:
        super().__init__(width, **options)
        if not 0 < robust_share < 1:
            raise ValueError(f"robust_share is {robust_share}, expected a number between 0 and 1")
        self._share = robust_share

    @property
    def row_width(self) -> int:
        """2 D, the number of columns of a sample's row."""
        return 2 * self.statistic_width

    def learned_rows(self, features: Tensor) -> Tensor:
        """Return the rows float64 [N, 2 D] of samples that are learned.

        Args:
            features: [N, 2 d], those of the images and of the views side by side.

        Raises:
            ValueError: another shape.
        """
        if features.ndim != 2 or features.shape[1] != 2 * self.width:
            raise ValueError(f"features have shape {tuple(features.shape)}, expected [N, {2 * self.width}]")
        return torch.cat([self.statistic_rows(half) for half in features.split(self.width, dim=1)], dim=1)

    def outer_rows(self, rows: Tensor) -> Tensor:
        """Return [2 N, D] of rows [N, 2 D]: both halves, each by the root of its weight."""
        image, view = rows.split(self.statistic_width, dim=1)
        return torch.cat([math.sqrt(1 - self._share) * image, math.sqrt(self._share) * view])

    def summed_rows(self, rows: Tensor) -> Tensor:
        """Return [N, D] of rows [N, 2 D]: the weighted mean of both halves."""
        image, view = rows.split(self.statistic_width, dim=1)
        return torch.lerp(image, view, self._share)

    def empty_on_rows(self, classes: int) -> RidgeHead:
        """Return a head without samples on the CPU, with the same ridge, whose features are rows."""
        head = ViewPairRidgeHead(self.statistic_width, robust_share=self._share, **self._ridge_options())
        head.grow(classes)
        return head
