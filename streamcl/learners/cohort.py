"""Cohorts: how samples fall into them, what each of them taught, and the weights that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from streamcl.events import ForgetRequest, Sample
from streamcl.heads.solving import linear_scores
from streamcl.heads.statistics import Statistics, zero_padded
from streamcl.learners.adapted_branch import AdaptedBranch
from streamcl.learners.class_index import ClassIndex, pseudonym
from streamcl.learners.predictions import all_finite
from streamcl.protocols import Rollback, State, savepoint_of

SHARED_COHORT = ""
"""The cohort of samples without one, and of cohorts past the limit: it has no adapter."""


@dataclass(frozen=True, slots=True)
class CohortRule:
    """How samples fall into cohorts: by domain (a tenant), by subject, or by ranges of so many offsets.

    max_adapters: cohorts that get an adapter; later ones share SHARED_COHORT.
    """

    cohort_by: Literal["domain", "subject", "offset_range"]
    records_per_cohort: int = 1000
    max_adapters: int = 8

    def name(self, sample: Sample, offset: int | None) -> str:
        """Return the cohort's name, a hash of the tenant or subject; SHARED_COHORT where there is none."""
        if self.cohort_by == "offset_range":
            return SHARED_COHORT if offset is None else str(offset // self.records_per_cohort)
        value = sample.domain if self.cohort_by == "domain" else sample.subject
        return SHARED_COHORT if value is None else pseudonym(value)

    def selected_cohorts(self, request: ForgetRequest) -> tuple[str, ...]:
        """Return the cohorts that a request names whole; none where it names anything else."""
        chosen = request.selection.keys()
        match self.cohort_by:
            case "subject" if request.subject is not None and chosen == {"subject"}:
                return (pseudonym(request.subject),)
            case "domain" if request.domain is not None and chosen == {"domain"}:
                return (pseudonym(request.domain),)
            case "offset_range" if request.offsets is not None and chosen == {"offsets"}:
                first, end = (
                    request.offsets[0] // self.records_per_cohort,
                    -(-request.offsets[1] // self.records_per_cohort),
                )
                return tuple(str(number) for number in range(first, min(end, first + 100_000)))
        return ()


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
        """Whether there is a frozen adapter."""
        return self.branch is not None and self.branch.frozen

    def sums(self, index: ClassIndex) -> Statistics:
        """Return the sums on frozen features, with the class columns of `index`."""
        own = {name: column for column, name in enumerate(self.classes)}
        return self._sums.select([own.get(name, -1) for name in index.names])

    def learn(self, features: Tensor, views: Sequence[Tensor], labels: Sequence[str]) -> bool:
        """Add samples to the sums and train the branch; return False, to be rolled back, where not finite.

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
        adapted = self.branch.features(views[0])  # [B, E]
        if not all_finite(adapted):
            return False
        self.branch.head.grow(len(self._index))
        self.branch.head.update(adapted, targets)
        return True

    def savepoint(self) -> Rollback:
        """Return a callable that restores the state after one `learn`."""
        parts = () if self.branch is None else (self.branch.savepoint(),)
        return savepoint_of(self, "learned", "_index", "_sums", parts=parts)

    def blend_scores(self, shared: Tensor, tokens: Tensor, index: ClassIndex, *, exact: bool) -> Tensor:
        """Return scores [B, C], blended with those of the branch on the classes that it knows.

        Args:
            shared: [B, C], scores by the weights that all cohorts share.
            tokens: [B, N, d], at the branch's first block.
            index: the classes of the columns of `shared`.
            exact: whether the branch's weights are refitted on all that it knows.
        """
        if self.branch is None or not self.branch.frozen or not self.classes:
            return shared
        columns = index.columns(self.classes, shared.device)
        features, head = self.branch.features(tokens), self.branch.head  # [B, E]
        adapted = head.scores_refit(features) if exact else head.scores(features)
        blended = shared.clone()
        blended[:, columns] = self.branch.blend_scores(shared[:, columns], adapted)
        return blended

    def state_dict(self) -> State:
        """Return the sums, the branch, the classes and the number of samples learned."""
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


@dataclass(frozen=True, slots=True, eq=False)
class SharedSolution:
    """The shared weights W [D, C] and b [C], and the counts int64 [C] that they were solved for."""

    W: Tensor
    b: Tensor
    counts: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Return scores float64 [B, C] of features [B, D]; a class without samples is never named."""
        return linear_scores(features, self.W, self.b, self.counts > 0)

    def widened(self, classes: int) -> SharedSolution:
        """Return the same solution with columns for so many classes."""
        more = classes - len(self.counts)
        return SharedSolution(*(zero_padded(each, more) for each in (self.W, self.b, self.counts)))
