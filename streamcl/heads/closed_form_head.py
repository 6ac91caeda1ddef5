"""The interface of a head in closed form: statistics that samples are added to and subtracted from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from streamcl.protocols import State

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.heads.statistics import HeadStatistics, PartsOfHead

S = TypeVar("S", bound="HeadStatistics")


class ClosedFormHead(Protocol[S]):
    """Scores [N, C] of features [N, d], solved from sums over rows [N, D] of what was learned."""

    @property
    def classes(self) -> int:
        """The number of class columns."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples learned and not forgotten, per class column."""

    @property
    def statistics(self) -> S:
        """The head's own statistics. Not to be written to."""

    @property
    def statistic_width(self) -> int:
        """D: the number of columns of the rows that are summed."""

    def grow(self, classes: int) -> None:
        """Have at least `classes` columns."""

    def statistic_rows(self, features: Tensor) -> Tensor:
        """Return the rows that are summed, float64 [N, D], of features [N, d]."""

    def statistics_of(self, features: Tensor, targets: Tensor) -> S:
        """Return the statistics of features [N, d] with targets int64 [N]; change nothing."""

    def statistics_from_parts(self, parts: PartsOfHead) -> S:
        """Return the sum of parts."""

    def update(self, features: Tensor, targets: Tensor) -> None:
        """Learn features [N, d] with targets int64 [N], columns that exist."""

    def savepoint(self) -> Callable[[], None]:
        """Return a callable that restores the state after one `grow` and one `update` or `remove`."""

    def remove(self, other: S) -> None:
        """Subtract; raise ForgettingError, and change nothing, where `other` cannot be in the sums."""

    def removal_figures(self) -> Mapping[str, Any]:
        """Return the figures that show that the statistics are sound after `remove`."""

    def drop_class(self, column: int) -> None:
        """Remove the column of a class without samples; later columns move up by one."""

    def scores(self, features: Tensor) -> Tensor:
        """Return float64 [N, C] by the weights in use while learning; change nothing."""

    def scores_refit(self, features: Tensor) -> Tensor:
        """Return float64 [N, C] by weights of all that is known; change nothing."""

    def state_dict(self) -> State:
        """Return the statistics and the weights in use."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the head that returned `state`."""
