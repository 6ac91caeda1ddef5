"""Scores of a frozen and an adapted branch as one, with a weight of the adapted branch for each class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from streamcl.learners.lazy_imports import lazy_imports

with lazy_imports():
    import torch

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.heads.ridge import RidgeHead
    from streamcl.nn.adapted_blocks import Adapters
    from streamcl.protocols import State


class BlendedBranch(ABC):
    """An adapted branch with a ridge head, whose scores are blended with those of a frozen one."""

    @property
    @abstractmethod
    def head(self) -> RidgeHead:
        """The head on the adapted features."""

    @property
    @abstractmethod
    def adapters(self) -> Adapters:
        """The adapted blocks."""

    @property
    @abstractmethod
    def version(self) -> int:
        """Changes whenever the features that have a say do."""

    @property
    @abstractmethod
    def shares(self) -> Tensor:
        """The branch's weight on each class of the head, float64 [C]."""

    @abstractmethod
    def drop_class(self, column: int) -> None:
        """Lose a class column whose samples are all forgotten; later ones move up by one."""

    @abstractmethod
    def state_dict(self) -> State:
        """Return the branch's state."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the branch that returned `state`."""

    def blend_scores(self, frozen: Tensor, adapted: Tensor) -> Tensor:
        """Return one set of scores [N, C] from those of the frozen branch and of this one.

        Args:
            frozen: [N, C], scores of the frozen branch.
            adapted: [N, C], scores of this branch; where either is not finite the frozen branch's stands.
        """
        apart = torch.where(adapted.isfinite() & frozen.isfinite(), adapted - frozen, 0.0)
        return frozen + self.shares.to(frozen) * apart

    def blend_variance(self, frozen: Tensor, adapted: Tensor) -> Tensor:
        """Return the variance [N, C] of the blended scores, as if those of the branches were independent.

        Args:
            frozen: [N, C], variances of the frozen branch's scores.
            adapted: [N, C], variances of this branch's.
        """
        weights = self.shares.to(frozen) * (self.head.statistics.counts > 0)
        return (1 - weights).square() * frozen + weights.square() * adapted
