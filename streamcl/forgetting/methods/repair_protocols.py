"""What a repair of shared weights needs of a learner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from streamcl.events import Sample
from streamcl.heads.linear import LinearHead
from streamcl.memory.importance import Importance
from streamcl.nn.adapted_blocks import Adapters
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute


class GradientModel(Protocol):
    """Adapted blocks and a linear head on a frozen backbone, trained by one optimizer."""

    @property
    def backbone(self) -> Backbone:
        """What everything stands on; never changed."""
        ...

    @property
    def compute(self) -> Compute:
        """Device and precision."""
        ...

    @property
    def adapters(self) -> Adapters | None:
        """The adapted blocks."""
        ...

    @property
    def head(self) -> LinearHead:
        """The classifier."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Holds the moments of all that is trained."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes known, by column of the head."""
        ...

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        ...

    def features(self, samples: Sequence[Sample]) -> Tensor:
        """[B, d]: the backbone's final features; gradients reach the adapters only."""
        ...

    def targets(self, samples: Sequence[Sample]) -> Tensor:
        """int64 [N]: the columns of the samples' classes, -1 for those not known."""
        ...


@runtime_checkable
class GradientTrained(Protocol):
    """A learner whose shared weights can be repaired in place."""

    @property
    def model(self) -> GradientModel:
        """What is trained."""
        ...


@runtime_checkable
class HasImportance(Protocol):
    """A learner that keeps the importance of its adapters."""

    @property
    def importance(self) -> Importance:
        """Omega, estimated from held samples."""
        ...
