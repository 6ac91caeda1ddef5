"""How well a learner's features tell some samples from others, and how sure that figure is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from streamcl.events import Sample

Floats: TypeAlias = npt.NDArray[np.float64]

TOGETHER = 16  # samples that go through the backbone together


def features_of(extract: Callable[[Sequence[Sample]], Any], samples: Sequence[Sample]) -> Floats:
    """Return float64 [N, D]: the features that `extract` gives of samples as a tensor, a few at a time."""
    chunks = [samples[start : start + TOGETHER] for start in range(0, len(samples), TOGETHER)]
    with torch.no_grad():
        return np.concatenate([np.asarray(extract(each).cpu(), dtype=float) for each in chunks])


def separability(one: Floats, other: Floats) -> float:
    """Area under the curve, 0.5 is chance: the direction between means of every second row, on the rest."""
    direction = one[::2].mean(axis=0) - other[::2].mean(axis=0)
    return _area(one[1::2] @ direction, other[1::2] @ direction)


def standard_error(area: float, one: int, other: int) -> float:
    """Of an area under the curve from every second of so many rows (Hanley and McNeil, 1982)."""
    a = min(max(area, 0.5), 0.999)
    m, n = max(1, one // 2), max(1, other // 2)
    first, second = a / (2 - a), 2 * a * a / (1 + a)
    return math.sqrt((a * (1 - a) + (m - 1) * (first - a * a) + (n - 1) * (second - a * a)) / (m * n))


def _area(high: Floats, low: Floats) -> float:
    """P(high > low) with ties counted half, the area under the ROC curve."""
    from scipy.stats import mannwhitneyu  # takes most of a second, and only relapse tests need it

    return float(mannwhitneyu(high, low, method="asymptotic").statistic) / (len(high) * len(low))
