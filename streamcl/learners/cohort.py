"""The part of a learner that one cohort taught: statistics on frozen features, and a branch of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from streamcl.heads.statistics import Statistics
from streamcl.learners.adapted_branch import AdaptedBranch
from streamcl.learners.class_index import ClassIndex
from streamcl.learners.predictions import all_finite
from streamcl.learners.rollback import Rollback
from streamcl.protocols import State


class Cohort:
    """Everything here comes from one cohort's samples and from the frozen backbone, class columns included.

    branch: None for samples that belong to no cohort; they have sums and no adapter.
    """

    def __init__(self, branch: AdaptedBranch | None, width: int, device: torch.device | str) -> None:
        self.branch = branch
        self.learned = 0
        self._index = ClassIndex()
        self._sums = Statistics.empty(width, device)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that this cohort has brought."""
        return self._index.names

    @property
    def ready(self) -> bool:
        """Whether there is an adapter that holds still."""
        return self.branch is not None and self.branch.frozen

    def sums(self, index: ClassIndex) -> Statistics:
        """Its sums on frozen features, with the class columns of `index`."""
        own = {name: column for column, name in enumerate(self.classes)}
        return self._sums.select([own.get(name, -1) for name in index.names])

    def learn(self, features: Tensor, views: Sequence[Tensor], labels: Sequence[str]) -> bool:
        """Add samples to the sums and train the branch; False, for the caller to roll back, if not finite.

        Args:
            features: float32 [B, D], of the frozen blocks.
            views: the tokens [B, N, d] at the branch's first block, for each view.
            labels: B class names.
        """
        self._index = ClassIndex([*self.classes, *labels])
        targets = self._index.columns(labels, features.device)
        self.learned += len(labels)
        share = Statistics.of(features, targets, len(self._index))
        self._sums = self._sums + share
        if self.branch is None:
            return True
        if not self.branch.frozen and not self.branch.adapt(views, targets, len(self._index)):
            return False
        adapted = self._adapted(views[0])
        if not all_finite(adapted):
            return False
        self.branch.head.grow(len(self._index))
        self.branch.head.update(adapted, targets)
        return True

    def savepoint(self) -> Rollback:
        """Return a callable that restores the state after one `learn`."""
        branch = None if self.branch is None else self.branch.savepoint()
        before = self.learned, self._index, self._sums

        def undo() -> None:
            if branch is not None:
                branch()
            self.learned, self._index, self._sums = before

        return undo

    def blend_scores(self, shared: Tensor, tokens: Tensor, index: ClassIndex, *, exact: bool) -> Tensor:
        """The shared scores [B, C] with its branch's say, on the classes that it knows."""
        if self.branch is None or not self.branch.frozen or not self.classes:
            return shared
        columns = index.columns(self.classes, shared.device)
        features, head = self._adapted(tokens), self.branch.head
        adapted = head.scores_refit(features) if exact else head.scores(features)
        joined = shared.clone()
        joined[:, columns] = self.branch.blend_scores(shared[:, columns], adapted)
        return joined

    def _adapted(self, tokens: Tensor) -> Tensor:
        """float32 [B, E]."""
        assert self.branch is not None
        return self.branch.features(tokens)

    def state_dict(self) -> State:
        """Sums, branch, classes and how many samples were learned."""
        return {
            "classes": list(self.classes),
            "learned": self.learned,
            "sums": self._sums.state_dict(),
            "branch": None if self.branch is None else self.branch.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the cohort that returned `state`."""
        self._index = ClassIndex(state["classes"])
        self.learned = int(state["learned"])
        self._sums = Statistics.from_state(state["sums"], self._sums.gram.width, self._sums.Q.device)
        if self.branch is not None:
            self.branch.load_state_dict(state["branch"])
