"""The part that learners with a frozen and an adapted branch share: two ridge heads' scores as one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from streamcl.capabilities.interfaces import AdapterExport, LearnedListener
from streamcl.errors import CheckpointError
from streamcl.events import Batch, Sample, StepResult
from streamcl.learners.blending import BlendedBranch
from streamcl.learners.lazy_imports import lazy_imports
from streamcl.learners.ridge import RidgeLearner
from streamcl.learners.step import LogitLearner
from streamcl.protocols import State, savepoint_of

with lazy_imports():
    from streamcl.learners import calibration

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.heads.closed_form_head import ClosedFormHead
    from streamcl.heads.stability import ScoreUncertainty
    from streamcl.heads.statistics import Statistics
    from streamcl.learners.calibration import ScoreCalibration

    HeadScores: TypeAlias = Callable[[ClosedFormHead[Statistics], Tensor], Tensor]

Branch = TypeVar("Branch", bound=BlendedBranch)


class BlendedLearner(LogitLearner, Generic[Branch]):
    """Two ridge heads' scores as one: on frozen features, and on adapted ones.

    Subclasses have readings of their own, with `features` [B, D] and `adapted`, [B, E] or None.

    Args:
        exact: the frozen branch, a RidgeLearner of its own; order-free, and what is forgotten there is gone
            exactly. Nothing that LoRA does reaches it.
        adapted: shares the frozen prefix; None once it has been dropped, which leaves the exact branch alone.
        new_branch: makes a branch like `adapted`, for a state from before the branch was dropped.
    """

    def __init__(
        self,
        exact: RidgeLearner[Statistics],
        adapted: Branch | None,
        new_branch: Callable[[], Branch] | None = None,
    ) -> None:
        self.exact, self.adapted, self._new_branch = exact, adapted, new_branch
        self.calibration = exact.calibration
        self._listeners: list[LearnedListener] = []

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes known, by column of both heads."""
        return self.exact.classes

    @property
    def backbone(self) -> Any:
        """The frozen backbone that both branches share."""
        return self.exact.backbone

    @abstractmethod
    def read(self, samples: Sequence[Sample]) -> Any:
        """Return the features of samples, one or more, for `scores` and `learn_from`."""

    @abstractmethod
    def read_together(self, samples: Sequence[Sample]) -> Any:
        """Read on all ranks, each its share of the samples."""

    @abstractmethod
    def learn_from(self, batch: Batch, reading: Any) -> StepResult:
        """Learn the batch from features that were read of its samples."""

    def logits(self, samples: Sequence[Sample]) -> Tensor:
        """Return scores [B, C] by weights of all that is known."""
        scores = self.scores_refit(self.read(samples))
        return self.calibration.for_predictions(scores)

    def learn(self, batch: Batch) -> StepResult:
        """Predict the batch, then learn its labelled samples."""
        if not batch.samples:
            return StepResult((), (), learned=())
        return self.learn_from(batch, self.read_together(batch.samples))

    def scores(self, reading: Any) -> Tensor:
        """Return float64 [B, C] by the weights in use while learning."""
        return self._blended(reading.features, self._adapted_of(reading), _in_use)

    def last_solve_scores(self, reading: Any) -> Tensor:
        """Return float64 [B, C] by weights that change more slowly than those in use."""
        return self._blended(reading.features, self._adapted_of(reading), _of_last_solve)

    def scores_refit(self, reading: Any) -> Tensor:
        """Return float64 [B, C] by weights of all that is known."""
        return self._blended(reading.features, self._adapted_of(reading), _refit)

    def uncertainty_in_use(self, reading: Any) -> ScoreUncertainty | None:
        """Return the uncertainty of `scores`, as if branches were independent; None where it is not known."""
        frozen, rows = self.exact.head.uncertainty_in_use(reading.features), self._adapted_of(reading)
        if frozen is None or self.adapted is None or rows is None:
            return frozen
        adapted = self.adapted.head.uncertainty_in_use(rows)
        if adapted is None:
            return None
        return frozen._replace(variance=self.adapted.blend_variance(frozen.variance, adapted.variance))

    @property
    def score_calibration(self) -> ScoreCalibration:
        """The capability `calibration`, over the scores of both branches."""
        return calibration.ScoreCalibration(
            self.calibration,
            self._calibration_features,
            lambda rows: self._blended(rows[0], rows[1] if rows[1:] else None, _refit),
            self.exact.index,
            features_version=None if self.adapted is None else self.adapted.version,
        )

    @property
    def adapter_export(self) -> AdapterExport | None:
        """The adapters in a form that can be written; None once they were dropped."""
        return None if self.adapted is None else AdapterExport(self.adapted.adapters, None, self.classes)

    def drop_class(self, name: str) -> None:
        """Lose a class whose samples are all forgotten; later classes move up by one column."""
        column = self.classes.index(name) if name in self.classes else -1
        self.exact.drop_class(name)
        if self.adapted is not None:
            self.adapted.drop_class(column)

    def drop_adapted(self) -> Callable[[], None]:
        """Remove the adapted branch; no gradient reached the rest. Return a callable that puts it back."""
        undo, self.adapted = savepoint_of(self, "adapted"), None
        return undo

    def state_dict(self) -> State:
        """Return both branches, without the backbone's own weights."""
        adapted = None if self.adapted is None else self.adapted.state_dict()
        return {"exact": self.exact.state_dict(), "adapted": adapted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned `state`, with a new branch where it has one that was dropped here.

        Raises:
            CheckpointError: the state has a branch, and this learner was made without one.
        """
        branch = self.adapted
        if branch is None and state["adapted"] is not None:
            if self._new_branch is None:
                raise CheckpointError(
                    "the state has an adapted branch, and this learner was made without one"
                )
            branch = self._new_branch()
        self.exact.load_state_dict(state["exact"])
        self.adapted = None if state["adapted"] is None else branch
        if self.adapted is not None:
            self.adapted.load_state_dict(state["adapted"])

    def _adapted_of(self, reading: Any) -> Tensor | None:
        """Return the adapted features [B, E] of a reading that scores are of; None without any."""
        found: Tensor | None = reading.adapted
        return found

    def _blended(self, features: Tensor, adapted: Tensor | None, of: HeadScores) -> Tensor:
        """Return scores [B, C] of frozen features [B, D] and, where there are any, adapted ones [B, E]."""
        scores = of(self.exact.head, features)
        if self.adapted is None or adapted is None:
            return scores
        return self.adapted.blend_scores(scores, of(self.adapted.head, adapted))

    def _calibration_features(self, samples: Sequence[Sample]) -> tuple[Tensor, ...]:
        """Return the features that scores are of: [B, D] and, of a branch with a say, [B, E]."""
        reading = self.read(samples)
        return (reading.features,) if reading.adapted is None else (reading.features, reading.adapted)


def _in_use(head: ClosedFormHead[Statistics], rows: Tensor) -> Tensor:
    return head.scores(rows)


def _of_last_solve(head: ClosedFormHead[Statistics], rows: Tensor) -> Tensor:
    return head.last_solve_scores(rows)


def _refit(head: ClosedFormHead[Statistics], rows: Tensor) -> Tensor:
    return head.scores_refit(rows)
