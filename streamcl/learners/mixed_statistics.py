"""The removable statistics of a mixed-privacy learner: of the core's heads, of its sums, and of users'."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeVar

from torch import Tensor

from streamcl.capabilities.interfaces import Additive
from streamcl.events import Sample
from streamcl.heads.statistics import Statistics
from streamcl.heads.user_weights import UserWeights
from streamcl.learners.class_index import ClassIndex
from streamcl.learners.pseudonym import pseudonym
from streamcl.learners.ridge_lora import RidgeLoRALearner
from streamcl.learners.rollback import Transaction
from streamcl.learners.statistics import PerHead

T = TypeVar("T", bound=Additive)


@dataclass(frozen=True, slots=True, eq=False)
class MixedStatistics:
    """The statistics of samples in a mixed-privacy learner.

    Attributes:
        branches: to the heads of the core; None without core samples.
        core: to the core's sums of user features; None without core samples.
        users: to the users' sums, by cohort (see `subject_cohort`).
    """

    branches: PerHead[Statistics] | None
    core: Statistics | None
    users: Mapping[str, Statistics]

    @property
    def all_users(self) -> Statistics | None:
        """The sum over all cohorts; None where no user is among the samples."""
        return reduce(operator.add, self.users.values()) if self.users else None

    def __add__(self, other: MixedStatistics) -> MixedStatistics:
        """Return the statistics of both."""
        names = {**self.users, **other.users}
        users = {name: _sum(self.users.get(name), other.users.get(name)) for name in names}
        return MixedStatistics(
            _sum(self.branches, other.branches),
            _sum(self.core, other.core),
            {name: each for name, each in users.items() if each is not None},
        )

    def relative_error(self, other: MixedStatistics) -> float:
        """Return the largest relative error of any of the sums."""
        errors = [each.relative_error(other.users[name]) for name, each in self.users.items()]
        if self.core is not None and other.core is not None:
            errors.append(self.core.relative_error(other.core))
        if self.branches is not None and other.branches is not None:
            errors.append(self.branches.relative_error(other.branches))
        return max([0.0, *errors])


@dataclass(frozen=True, slots=True, eq=False)
class MixedPrivacyStatistics:
    """RemovableStatistics of a mixed-privacy learner, once the adapters are frozen.

    Attributes:
        read: the user features z [B, D] of samples.
        index: the classes known.
    """

    core: RidgeLoRALearner
    users: UserWeights
    read: Callable[[Sequence[Sample]], Tensor]
    index: ClassIndex

    @property
    def by_rows(self) -> None:
        """None: users' sums are apart from the core's."""
        return

    def of(self, samples: Sequence[Sample]) -> MixedStatistics:
        """Return what labelled samples add; ForgettingError for a class that was never learned."""
        core = [sample for sample in samples if sample.privacy == "core"]
        users: dict[str, list[Sample]] = {}
        for sample in samples:
            if sample.privacy == "user":
                users.setdefault(subject_cohort(sample.subject), []).append(sample)
        return MixedStatistics(
            self.core.statistics.of(core) if core else None,
            self._of_features(core) if core else None,
            {name: self._of_features(each) for name, each in users.items()},
        )

    def subtract(self, value: MixedStatistics) -> Mapping[str, Any]:
        """Subtract everywhere or, where that is refused, nowhere."""
        stored = {name: each for name, each in value.users.items() if name in self.users.cohorts}
        with Transaction(self.users.savepoint()):
            figures = self.users.remove(value.core, stored, value.all_users)
            if value.branches is None:
                return figures
            return {**figures, **self.core.statistics.subtract(value.branches)}

    def _of_features(self, samples: Sequence[Sample]) -> Statistics:
        z = self.read(samples)
        return self.users.statistics_of(z, self.index.known_columns(samples, z.device))


def subject_cohort(subject: str | None) -> str:
    """Return the cohort under which a subject's sums are stored; "" without a subject."""
    return "" if subject is None else pseudonym(subject)


def _sum(one: T | None, other: T | None) -> T | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
