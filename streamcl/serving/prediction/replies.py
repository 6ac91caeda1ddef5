"""The replies of a predictor; without torch, since the web process reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from streamcl.storage.snapshots import SnapshotInfo

Ranked: TypeAlias = tuple[tuple[str, float], ...]
"""Classes with their probabilities, the most probable first; empty where no class can be predicted."""


@dataclass(frozen=True, slots=True)
class PredictedImage:
    """The classes of an image.

    exit, work: where it had a deadline, the number of the exit that gave them, from 1, and the share of the
    work of all blocks.
    """

    classes: Ranked
    exit: int | None = None
    work: float | None = None

    def cut(self, count: int) -> PredictedImage:
        """Return it with the first classes alone."""
        return replace(self, classes=self.classes[:count])


@dataclass(frozen=True, slots=True)
class PredictorReply:
    """The classes of each image, or the reason why it cannot be read, and the model's version."""

    model: SnapshotInfo
    results: tuple[PredictedImage | str, ...]
