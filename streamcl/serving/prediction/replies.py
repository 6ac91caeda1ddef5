"""The replies of a predictor; without torch, since the web process reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from streamcl.storage.snapshots import SnapshotInfo

Ranked: TypeAlias = tuple[tuple[str, float], ...]
"""Classes with their probabilities, the most probable first; empty where no class can be predicted."""


@dataclass(frozen=True, slots=True)
class PredictorReply:
    """The classes of each image, or the reason why it cannot be read, and the model's version."""

    model: SnapshotInfo
    results: tuple[Ranked | str, ...]
