"""The removable statistics of learners: of closed-form heads, and of mixed privacy's core and users."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from streamcl.capabilities.interfaces import Additive, LearnedListener, Rows, StatisticsPart
from streamcl.events import Sample
from streamcl.heads.closed_form_head import ClosedFormHead, S
from streamcl.learners.class_index import ClassIndex, pseudonym
from streamcl.learners.step import Transaction

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.heads.statistics import PartsOfHead, Statistics
    from streamcl.heads.user_weights import UserWeights
    from streamcl.learners.ridge_lora import RidgeLoRALearner

T = TypeVar("T", bound=Additive)


@dataclass(frozen=True, slots=True, eq=False)
class PerHead(Generic[S]):
    """Statistics of the same samples in each head of a learner."""

    heads: tuple[S, ...]

    def __add__(self, other: PerHead[S]) -> PerHead[S]:
        """Return the statistics of both, head by head."""
        return PerHead(tuple(one + two for one, two in zip(self.heads, other.heads, strict=True)))

    def __sub__(self, other: PerHead[S]) -> PerHead[S]:
        """Return the statistics without those of `other`, head by head."""
        return PerHead(tuple(one - two for one, two in zip(self.heads, other.heads, strict=True)))

    def relative_error(self, other: PerHead[S]) -> float:
        """Return the largest relative error of any head."""
        return max(one.relative_error(two) for one, two in zip(self.heads, other.heads, strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class ClosedFormStatistics(Generic[S]):
    """RemovableStatistics, and StatisticRows, of the heads that a learner has at present.

    Attributes:
        heads: those from which samples are subtracted.
        read: the features [N, d] of samples for each head, derived as when they were learned.
        index: the classes known.
        listeners: of the learner, called after each step.
    """

    heads: tuple[ClosedFormHead[S], ...]
    read: Callable[[Sequence[Sample]], Sequence[Tensor]]
    index: ClassIndex
    listeners: list[LearnedListener]

    @property
    def by_rows(self) -> ClosedFormStatistics[S]:
        """The same."""
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """The number of columns of each head's rows."""
        return tuple(head.row_width for head in self.heads)

    def of(self, samples: Sequence[Sample]) -> PerHead[S]:
        """Return the statistics of labelled samples in each head; ForgettingError for a class not learned."""
        features = self.read(samples)
        targets = self.index.known_columns(samples, features[0].device)
        return PerHead(
            tuple(head.statistics_of(each, targets) for head, each in zip(self.heads, features, strict=True))
        )

    def rows_of(self, samples: Sequence[Sample]) -> tuple[Rows, ...]:
        """Return the rows float64 [N, D] of samples for each head."""
        pairs = zip(self.heads, self.read(samples), strict=True)
        return tuple(_rows(head, features) for head, features in pairs)

    def from_parts(self, parts: Sequence[Iterable[StatisticsPart]]) -> PerHead[S]:
        """Return the sum of the parts of each head."""
        pairs = zip(self.heads, parts, strict=True)
        return PerHead(tuple(head.statistics_from_parts(self._by_column(each)) for head, each in pairs))

    def subtract(self, value: PerHead[S]) -> Mapping[str, Any]:
        """Subtract from every head or, where one refuses, from none; return the first head's figures."""
        pairs = list(zip(self.heads, value.heads, strict=True))
        with Transaction(*(head.savepoint() for head in self.heads)):
            for head, each in reversed(pairs):
                head.remove(each)
        return self.heads[0].removal_figures()

    def on_learned(self, listener: LearnedListener) -> None:
        """Call the listener after each batch, within the step."""
        self.listeners.append(listener)

    def notify(self, samples: Sequence[Sample], features: Sequence[Tensor | None]) -> None:
        """Notify the listeners of samples that were learned.

        Args:
            samples: N of them.
            features: [N, d] for each head, None for one from which they cannot be subtracted.
        """
        if self.listeners:
            pairs = zip(self.heads, features, strict=True)
            rows = [None if each is None else _rows(head, each) for head, each in pairs]
            for listener in self.listeners:
                listener(samples, rows)

    def _by_column(self, parts: Iterable[StatisticsPart]) -> PartsOfHead:
        column = {name: i for i, name in enumerate(self.index.names)}
        for rows, sums in parts:
            yield rows, {column[name]: total for name, total in sums.items()}


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


def _rows(head: ClosedFormHead[S], features: Tensor) -> Rows:
    rows: Rows = head.learned_rows(features).cpu().numpy()
    return rows
