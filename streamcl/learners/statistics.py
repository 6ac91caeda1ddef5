"""The removable statistics of a learner with closed-form heads: one value for each head, as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

from streamcl.capabilities.interfaces import LearnedListener, Rows, StatisticsPart
from streamcl.events import Sample
from streamcl.heads.closed_form_head import ClosedFormHead, S
from streamcl.learners.class_index import ClassIndex
from streamcl.learners.rollback import Transaction

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.heads.statistics import PartsOfHead


@dataclass(frozen=True, slots=True, eq=False)
class PerHead(Generic[S]):
    """Statistics of the same samples in each head of a learner."""

    heads: tuple[S, ...]

    def __add__(self, other: PerHead[S]) -> PerHead[S]:
        """Return the statistics of both, head by head."""
        return PerHead(tuple(one + two for one, two in zip(self.heads, other.heads, strict=True)))

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
        """D of the rows of each head."""
        return tuple(head.statistic_width for head in self.heads)

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
        """Tell the listeners that samples were learned by features [N, d] of each head.

        None stands for a head from which they cannot be subtracted.
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


def _rows(head: ClosedFormHead[S], features: Tensor) -> Rows:
    rows: Rows = head.statistic_rows(features).cpu().numpy()
    return rows
