"""Least squares on a few keys of each sample, from counts: nothing is rounded, whatever comes and goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from streamcl.heads.ridge import RidgeHead
from streamcl.protocols import State

KEYS_PER_DIRECTION = 16
"""Keys along a direction: four bits. With three bits and a third more directions it is no better."""

SPACING = 0.6
"""Distance of neighbouring keys, in standard deviations of the probe's features along a direction. Those of
photographs vary more than the probe's: a third of it loses a point or more."""


class KeyPairsHead(RidgeHead):
    """A ridge head on the keys of each sample: along H random directions, the nearest of 16 points.

    A key is an odd whole number from -15 to 15. G sums, for each pair of directions, the products of both
    keys, and Q sums keys for each direction and class: integers below 2^53, exact in float64 in whichever
    order samples are added and taken out. Sums that forget a sample are, to the bit, those that never saw it,
    and so are the weights that follow from them. The discrete key-value bottleneck (arXiv 2207.11240) with
    sums in place of values that gradients train.

    Args:
        width: d of the features.
        keys: H.
        probe: returns features [N, d] of images that are nobody's data; their mean and spread place the
            keys. It is called when keys are first needed, unless a state has brought them.
        seed: of the directions.
        options: those of RidgeHead.
    """

    def __init__(
        self, width: int, *, keys: int, probe: Callable[[], Tensor], seed: int = 0, **options: Any
    ) -> None:
        super().__init__(width, projection=keys, seed=seed, **options)
        self._probe = probe
        self._cells: tuple[Tensor, float] | None = None  # centre float32 [d], and the distance of keys

    def statistic_rows(self, features: Tensor) -> Tensor:
        """Return the keys, float64 [N, H], of features [N, d]; NaN where these are not finite."""
        self._confirm_width(features)
        centre, spacing = self._cells_in_use()
        missing = -len(features) % 8  # a product of one row rounds differently, so rows never come alone
        rows = F.pad(features.detach().to(centre) - centre, (0, 0, 0, missing))
        along = (rows @ self._directions)[: len(features)].double()
        half = KEYS_PER_DIRECTION // 2
        keys: Tensor = (along / spacing).floor().clamp(-half, half - 1) * 2 + 1
        return keys.masked_fill(~along.isfinite(), torch.nan)

    @property
    def _directions(self) -> Tensor:
        assert self._P is not None
        return self._P

    def _cells_in_use(self) -> tuple[Tensor, float]:
        if self._cells is None:
            features = self._probe().detach().to(self._directions)
            centre = features.mean(dim=0)
            spread = ((features - centre) @ self._directions).std(dim=0).mean()
            self._cells = centre, SPACING * float(spread)
        return self._cells

    def state_dict(self) -> State:
        """Return the statistics, the weights in use, and where the keys lie."""
        centre, spacing = self._cells_in_use()
        return {**super().state_dict(), "centre": centre.cpu().numpy().copy(), "spacing": spacing}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the head that returned `state`, made with the same arguments."""
        super().load_state_dict(state)
        centre = torch.tensor(np.asarray(state["centre"])).to(self._directions)
        self._cells = centre, float(state["spacing"])
