"""ridge_lora with a store of latents: adapters are trained anew as the stream grows, or without a sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from streamcl.capabilities.declaration import Capabilities
from streamcl.capabilities.interfaces import AdapterExport, LearnedListener
from streamcl.errors import CheckpointError
from streamcl.events import Batch, Sample, StepResult
from streamcl.learners import block_features, predictions
from streamcl.learners.assessment import BlendAssessment
from streamcl.learners.calibration import ScoreCalibration
from streamcl.learners.retrained_branch import RetrainedBranch
from streamcl.learners.ridge import RidgeLearner
from streamcl.learners.statistics import ClosedFormStatistics
from streamcl.learners.step import LogitLearner, PreparedStep, Transaction
from streamcl.protocols import State, savepoint_of

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.heads.statistics import Statistics


@dataclass(frozen=True, slots=True, eq=False)
class LatentReading:
    """The features of B samples.

    Attributes:
        features: float32 [B, D], of the frozen blocks.
        tokens: [B, N, d], where the adapted branch begins; None without a branch.
        adapted: float32 [B, E], None before adapters were trained.
        version: of the branch whose features `adapted` are.
    """

    features: Tensor
    tokens: Tensor | None = None
    adapted: Tensor | None = None
    version: int = 0

    def __getitem__(self, rows: Sequence[int]) -> LatentReading:
        """Return those of some rows."""
        tokens = None if self.tokens is None else self.tokens[rows]
        adapted = None if self.adapted is None else self.adapted[rows]
        return LatentReading(self.features[rows], tokens, adapted, self.version)


class LatentRidgeLoRALearner(LogitLearner):
    """Two ridge heads' scores as one: on frozen features of all samples, and on adapted ones of those stored.

    Args:
        exact: the frozen branch, a RidgeLearner of its own.
        adapted: the adapted branch; None once it has been dropped.
        new_branch: makes a branch like it, for a state from before it was dropped.
    """

    def __init__(
        self,
        exact: RidgeLearner[Statistics],
        adapted: RetrainedBranch | None,
        new_branch: Callable[[], RetrainedBranch] | None = None,
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

    def logits(self, samples: Sequence[Sample]) -> Tensor:
        """Return scores [B, C] by weights of all that is known."""
        scores = self.scores_refit(self.read(samples))
        return self.calibration.for_predictions(scores)

    def learn(self, batch: Batch) -> StepResult:
        """Predict the batch, add its labelled samples to the frozen head, and store some of them."""
        if not batch.samples:
            return StepResult((), (), learned=())
        return self.learn_from(batch, self.read_together(batch.samples))

    def read(self, samples: Sequence[Sample]) -> LatentReading:
        """Return the features of samples, one or more, for `scores` and `learn_from`."""
        reader = self.exact.reader
        if self.adapted is None or not isinstance(reader, block_features.PrefixReader):
            return LatentReading(self.exact.features(samples))
        features, views = reader.read(samples, self.adapted.training.first_block)
        return self.refresh_features(LatentReading(features, views[0], version=-1))

    def refresh_features(self, reading: LatentReading) -> LatentReading:
        """Return a reading with the adapted features of the adapters as they are now."""
        if self.adapted is None or reading.tokens is None or reading.version == self.adapted.version:
            return reading
        adapted = self.adapted.features(reading.tokens) if self.adapted.trained else None
        return replace(reading, adapted=adapted, version=self.adapted.version)

    def read_together(self, samples: Sequence[Sample]) -> LatentReading:
        """Read on all ranks, each its share of the samples; every rank gets all rows."""
        mine, group = self.read(self.exact.group.local_samples(samples)), self.exact.group
        tokens, adapted = (
            None if part is None else group.all_gather_rows(part, samples)
            for part in (mine.tokens, mine.adapted)
        )
        return LatentReading(group.all_gather_rows(mine.features, samples), tokens, adapted, mine.version)

    def scores(self, reading: LatentReading) -> Tensor:
        """Return float64 [B, C] by the weights in use while learning."""
        scores = self.exact.head.scores(reading.features)
        if self.adapted is None or (adapted := self.refresh_features(reading).adapted) is None:
            return scores
        return self.adapted.blend_scores(scores, self.adapted.head.scores(adapted))

    def scores_refit(self, reading: LatentReading) -> Tensor:
        """Return float64 [B, C] by weights of all that is known."""
        return self._blended(reading.features, self.refresh_features(reading).adapted)

    def learn_from(self, batch: Batch, reading: LatentReading) -> StepResult:
        """Learn the batch from features that were read of its samples."""
        scores = self.scores(reading)  # [B, C]
        step = self.exact.prepared(batch, scores)
        seen = [part for part in (reading.features, reading.tokens, reading.adapted) if part is not None]
        if not step.rows or not predictions.all_finite(*seen):
            return step.refused()
        learned = step.learned(reading.features)
        with Transaction(self.exact.savepoint()) as transaction:
            if self.adapted is not None:
                transaction.cover(self.adapted.savepoint())
            self.exact.add(reading.features[step.rows], step.targets, step.index)
            self.calibration.update(scores[step.rows], step.targets)
            self._store(step, reading)
            self.statistics.notify(batch.labelled, [reading.features[step.rows]])
        return learned

    def end_stream(self, offset: int) -> Mapping[str, Any]:
        """Train the adapters once more, where much has come since they were last trained."""
        return {} if self.adapted is None else self.adapted.end_stream(offset)

    @property
    def statistics(self) -> ClosedFormStatistics[Statistics]:
        """The removable statistics, of the frozen head; the adapted one holds what is stored."""
        heads, read = (self.exact.head,), lambda samples: (self.exact.features(samples),)
        return ClosedFormStatistics(heads, read, self.exact.index, self._listeners)

    @property
    def capabilities(self) -> Capabilities:
        """Statistics that samples are subtracted from, and adapters that are trained again without them."""
        branch = self.adapted
        return Capabilities(
            statistics=self.statistics,
            drop_class=self.drop_class,
            retrained=branch,
            drop_adapted_branch=self.drop_adapted,
            cached_features=self,
            assessment=BlendAssessment(self),
            calibration=ScoreCalibration(
                self.calibration,
                self._calibration_features,
                lambda rows: self._blended(rows[0], rows[1] if rows[1:] else None),
                self.exact.index,
                features_version=None if branch is None else branch.version,
            ),
            adapter_export=None if branch is None else AdapterExport(branch.adapters, None, self.classes),
        )

    def drop_class(self, name: str) -> None:
        """Lose a class whose samples are all forgotten; later classes move up by one column."""
        column = self.classes.index(name) if name in self.classes else -1
        self.exact.drop_class(name)
        if self.adapted is not None:
            self.adapted.drop_class(column, self.exact.index)

    def drop_adapted(self) -> Callable[[], None]:
        """Remove the adapted branch with its store. Return a callable that puts it back."""
        undo, self.adapted = savepoint_of(self, "adapted"), None
        return undo

    def state_dict(self) -> State:
        """Return both branches, without the backbone's own weights."""
        return {
            "exact": self.exact.state_dict(),
            "latents": None if self.adapted is None else self.adapted.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned `state`.

        Raises:
            CheckpointError: the state has a branch, and this learner was made without one.
        """
        branch = self.adapted
        if branch is None and state["latents"] is not None:
            if self._new_branch is None:
                raise CheckpointError("the state has stored latents, and this learner was made without any")
            branch = self._new_branch()
        self.exact.load_state_dict(state["exact"])
        self.adapted = None if state["latents"] is None else branch
        if self.adapted is not None:
            self.adapted.load_state_dict(state["latents"])

    def _blended(self, features: Tensor, adapted: Tensor | None) -> Tensor:
        scores = self.exact.head.scores_refit(features)
        if self.adapted is None or adapted is None:
            return scores
        return self.adapted.blend_scores(scores, self.adapted.head.scores_refit(adapted))

    def _calibration_features(self, samples: Sequence[Sample]) -> tuple[Tensor, ...]:
        """Return the features that scores are of: [B, D] and, once adapters were trained, [B, E]."""
        reading = self.read(samples)
        return (reading.features,) if reading.adapted is None else (reading.features, reading.adapted)

    def _store(self, step: PreparedStep, reading: LatentReading) -> None:
        """Store the labelled samples of a batch whose place it is."""
        if self.adapted is None or reading.tokens is None:
            return
        tokens, samples, offsets = reading.tokens, step.batch.labelled, step.batch.labelled_offsets
        self.adapted.grow(self.exact.index)
        self.adapted.advance(step.batch.offset)
        adapted = self.refresh_features(reading).adapted
        chosen = self.adapted.chosen([sample.id for sample in samples])
        rows = [step.rows[each] for each in chosen]
        self.adapted.add(
            tokens[rows],
            None if adapted is None else adapted[rows],
            [str(samples[each].label) for each in chosen],
            [offsets[each] for each in chosen],
            [samples[each].id for each in chosen],
        )
