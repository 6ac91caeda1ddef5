"""The base of heads in closed form: statistics that samples are added to and subtracted from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from streamcl.errors import ForgettingError
from streamcl.protocols import State

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.heads.stability import ScoreUncertainty
    from streamcl.heads.statistics import HeadStatistics, PartsOfHead

S = TypeVar("S", bound="HeadStatistics")


class ClosedFormHead(Protocol[S]):
    """Scores [N, C] of features [N, d], solved from sums over rows [N, D] of what was learned.

    has_uncertainty, has_leading: whether the sums hold what `uncertainty` and `leading_scores` need.
    """

    width: int
    has_uncertainty: bool = False
    has_leading: bool = False

    @property
    def statistics(self) -> S:
        """The head's own statistics. Not to be written to."""

    @property
    def classes(self) -> int:
        """The number of class columns, those without samples included."""
        return len(self.statistics.counts)

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples learned and not forgotten, per class column."""
        return tuple(self.statistics.counts.tolist())

    @property
    def statistic_width(self) -> int:
        """D: the number of columns of the rows that are summed."""

    def grow(self, classes: int) -> None:
        """Have at least `classes` columns."""

    def statistic_rows(self, features: Tensor) -> Tensor:
        """Return the rows float64 [N, D] that scores are of, of features [N, d]."""

    @property
    def row_width(self) -> int:
        """The number of columns of `learned_rows`: D, or more where views are learned beside an image."""
        return self.statistic_width

    def learned_rows(self, features: Tensor) -> Tensor:
        """Return one row float64 [N, row_width] for each sample that is learned, of its features [N, ...]."""
        return self.statistic_rows(features)

    def outer_rows(self, rows: Tensor) -> Tensor:
        """Return the rows [M, D] whose outer products are summed, of learned rows [N, row_width]."""
        return rows

    def summed_rows(self, rows: Tensor) -> Tensor:
        """Return the rows [N, D] that are summed by class, of learned rows [N, row_width]."""
        return rows

    def statistics_of(self, features: Tensor, targets: Tensor) -> S:
        """Return the statistics of samples; change nothing.

        Args:
            features: [N, d].
            targets: int64 [N], class columns that exist.
        """

    def statistics_from_parts(self, parts: PartsOfHead) -> S:
        """Return the sum of parts."""

    def update(self, features: Tensor, targets: Tensor) -> None:
        """Learn samples.

        Args:
            features: [N, d].
            targets: int64 [N], class columns that exist.
        """

    def savepoint(self) -> Callable[[], None]:
        """Return a callable that restores the state after one `grow` and one `update` or `remove`."""

    def remove(self, other: S) -> None:
        """Subtract; raise ForgettingError, and change nothing, where `other` cannot be in the sums."""

    def removal_figures(self) -> Mapping[str, Any]:
        """Return the figures that show that the statistics are sound after `remove`."""

    def drop_class(self, column: int) -> None:
        """Remove a class column; later columns move up by one. The head has then never seen the class.

        Raises:
            ForgettingError: there is no such column, or samples of the class are in the statistics.
        """
        if not 0 <= column < self.classes:
            raise ForgettingError(f"there is no class column {column}, only {self.classes}")
        if left := self.counts[column]:
            raise ForgettingError(
                f"class column {column} still has {left} samples in the statistics",
                hint="forget its samples first: their share of the sums is not in the column alone",
            )
        self._select([i for i in range(self.classes) if i != column])

    def _select(self, columns: Sequence[int]) -> None:
        """Keep these class columns, in this order."""

    def _confirm_width(self, features: Tensor) -> None:
        """Raise ValueError unless features are [N, d]."""
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ValueError(f"features have shape {tuple(features.shape)}, expected [N, {self.width}]")

    def scores(self, features: Tensor) -> Tensor:
        """Return float64 [N, C] of features [N, d] by the weights in use while learning; change nothing."""

    def last_solve_scores(self, features: Tensor) -> Tensor:
        """Return float64 [N, C] of features [N, d] by weights that change more slowly than those of `scores`.

        Losses that show shifts are of them: `scores` may know a new domain after one batch of it.
        """
        return self.scores(features)

    def scores_refit(self, features: Tensor) -> Tensor:
        """Return float64 [N, C] of features [N, d] by weights of all that is known; change nothing."""

    def uncertainty(self, features: Tensor) -> ScoreUncertainty:
        """Return the uncertainty of `scores_refit` of features [N, d]; raise TypeError where it has none."""
        raise TypeError(f"{type(self).__name__} has none, not even of {len(features)} samples")

    def uncertainty_in_use(self, features: Tensor) -> ScoreUncertainty | None:  # noqa: ARG002
        """Return the uncertainty of `scores` of features [N, d]; None where it is not known."""
        return None

    def leading_scores(self, features: Tensor) -> Tensor:
        """Return float64 [N, C] refitted to the first d' features alone, which are given, [N, d'].

        Raises:
            TypeError: the head cannot leave out features.
        """
        raise TypeError(f"{type(self).__name__} cannot leave out features, {features.shape[1]} are given")

    def link(self, scores: Tensor) -> Tensor:
        """Return [N, C] in the order of scores [N, C], of which a multiple is logits."""
        return scores

    def state_dict(self) -> State:
        """Return the statistics and the weights in use."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the head that returned `state`."""
