"""A closed-form head on a frozen backbone: no gradients, no order, exact forgetting by subtraction."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Literal

from pydantic import Field

from streamcl.capabilities.declaration import Capabilities
from streamcl.capabilities.interfaces import LearnedListener
from streamcl.config.options.base import BlockIndices, Options, ViewCount, Warn
from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from streamcl.events import Batch, Sample, StepResult
from streamcl.heads.closed_form_head import ClosedFormHead, S
from streamcl.learners.assessment import HeadAssessment
from streamcl.learners.class_index import ClassIndex
from streamcl.learners.factory import LearnerContext, LearnerFactory
from streamcl.learners.lazy_imports import lazy_imports
from streamcl.learners.statistics import ClosedFormStatistics
from streamcl.learners.step import LogitLearner, PreparedStep, Transaction, prepare_step
from streamcl.protocols import Rollback, State, savepoint_of

with lazy_imports():
    from streamcl.heads import ridge as ridge_head
    from streamcl.heads import stability
    from streamcl.learners import block_features, calibration, early_exit, predictions

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.heads.ridge import RidgeHead
    from streamcl.heads.stability import ScoreUncertainty
    from streamcl.heads.statistics import Statistics
    from streamcl.learners.block_features import FeatureReader
    from streamcl.nn.backbone import Backbone
    from streamcl.nn.device import Compute

RIDGE_SHARPNESS = 10.0
"""Factor on ridge scores, which lie near 0 and 1, before the softmax that losses are of. It is fixed, so that
a shift detector sees the stream in them, and not the calibration of confidences."""


class FrozenFeatureOptions(Options):
    """Features of a closed-form head, and when its weights are refitted."""

    blocks: BlockIndices | None = Field(
        None,
        description="Blocks whose tokens are the features, from 0; null: every second of the last eight.",
    )
    tta_views: ViewCount = 1
    refit_fraction: Warn[float] = Field(
        0.1,
        ge=0,
        le=1,
        description="Refit the weights used while learning once this share of the samples is new.",
    )
    defer_solve: Warn[int | None] = Field(
        None,
        ge=1,
        le=10**9,
        description="Refit in a thread beside the stream: the new weights come into use after so many more "
        "samples, and a new class is not predicted until then; null: the stream waits for them.",
    )


class ClosedFormOptions(FrozenFeatureOptions):
    """A closed-form head on frozen features, or on random ones of these."""

    projection: int | None = Field(
        None, ge=1, le=65_536, description="Random ReLU features on top; null: the features as they are."
    )


class RidgeOptions(ClosedFormOptions):
    """A closed-form ridge head on frozen features (RanPAC, arXiv 2307.02251)."""

    variance_ridge: Warn[float | None] = Field(
        300.0,
        gt=0,
        le=1e9,
        description="Ridge of each feature: its variance times so many samples; null: trace_ridge.",
    )
    gcv_margin: Warn[float | None] = Field(
        2.0,
        gt=0,
        le=1e9,
        description="variance_ridge grows where generalised cross-validation asks for more than so many "
        "times its value, as with wrong labels; null: never.",
    )
    trace_ridge: Warn[float] = Field(
        1e-3,
        gt=0,
        le=1e6,
        description="Ridge where variance_ridge is null: a share of the mean of the Gram matrix's diagonal.",
    )


class RidgeLearnerOptions(RidgeOptions):
    """The ridge head alone: no gradients, exact forgetting."""

    name: Literal["ridge"] = Field("ridge", description="Closed form on frozen features.")


class RidgeLearner(LogitLearner, Generic[S]):
    """Ridge regression to one-hot targets on tokens of several frozen blocks (RanPAC, arXiv 2307.02251).

    Each block gives its class token and its central patch token, layer-normalised; all of them side by side
    are the features, and `tta_views` of 2 averages them over the image and its mirrored inner part. What
    `learn` predicts comes from weights that are a little older than its statistics (see `refit_fraction` and
    `defer_solve`); `predict` uses weights of all that is known. `sharpness` multiplies the scores before the
    softmax that losses are of; confidences have factors of their own (see `calibration`).
    """

    def __init__(
        self,
        backbone: Backbone,
        compute: Compute,
        head: ClosedFormHead[S],
        *,
        blocks: Sequence[int],
        tta_views: int = 1,
        sharpness: float = 10.0,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.group = group
        self.backbone = backbone
        self.compute = compute
        self.head = head
        self.reader: FeatureReader = block_features.FrozenReader(
            backbone, compute, blocks, tta_views=tta_views
        )
        self.sharpness = sharpness
        self.calibration = calibration.Calibration(head.link)
        self.index = ClassIndex()
        self._listeners: list[LearnedListener] = []

    def logits(self, samples: Sequence[Sample]) -> Tensor:
        """Return scores [B, C] by weights of all that is known."""
        scores = self.head.scores_refit(self.features(samples))
        return self.calibration.for_predictions(scores)

    def learn(self, batch: Batch) -> StepResult:
        """Predict the batch, then add its labelled samples to the statistics."""
        if not batch.samples:
            return StepResult((), (), learned=())
        mine = self.features(self.group.local_samples(batch.samples))
        features = self.group.all_gather_rows(mine, batch.samples)  # [B, D]
        scores = self.scores(features)  # [B, C]
        step = self.prepared(batch, scores, self.head.uncertainty_in_use(features))
        if not step.rows or not predictions.all_finite(features):
            return step.refused()
        learned = step.learned(features)
        with Transaction(self.savepoint()):
            self.calibration.update(scores[step.rows], step.targets)
            self.add(features[step.rows], step.targets, step.index)
            self.statistics.notify(batch.labelled, (features[step.rows],))
        return learned

    def refused(self, batch: Batch) -> StepResult:
        """Return the predictions for a batch of one sample or more that is not learned; change no state."""
        features = self.features(batch.samples)
        uncertainty = self.head.uncertainty_in_use(features)
        return self.prepared(batch, self.scores(features), uncertainty).refused()

    def prepared(
        self, batch: Batch, scores: Tensor, uncertainty: ScoreUncertainty | None = None
    ) -> PreparedStep:
        """Return a batch with what is predicted of it before it is learned.

        Args:
            batch: B samples, one or more.
            scores: [B, C], by the weights in use.
            uncertainty: of the scores, where it is known.
        """
        calibrated = self.calibration.before_learning(scores)
        step = prepare_step(batch, self.sharpness * scores, self.index, calibrated)
        if uncertainty is None:
            return step
        flips = stability.flip_probability(scores, uncertainty.variance)
        made = predictions.with_assessment(step.predictions, flips, uncertainty.novelty)
        return replace(step, predictions=made)

    def add(self, features: Tensor, targets: Tensor, index: ClassIndex) -> None:
        """Add samples. Where it may fail half-way the caller restores a savepoint.

        Args:
            features: [B, D].
            targets: int64 [B], columns of `index`.
            index: the classes, which include all that this learner knows.
        """
        self.index = index
        self.head.grow(len(index))
        self.head.update(features, targets)

    def savepoint(self) -> Rollback:
        """Return a callable that restores the state after one `add`."""
        return savepoint_of(self, "index", parts=(self.head.savepoint(), self.calibration.savepoint()))

    @property
    def statistics(self) -> ClosedFormStatistics[S]:
        """The removable statistics, of the one head."""
        return ClosedFormStatistics(
            (self.head,), lambda samples: (self.features(samples),), self.index, self._listeners
        )

    @property
    def capabilities(self) -> Capabilities:
        """Statistics that samples are subtracted from, and features that never change."""
        return Capabilities(
            statistics=self.statistics,
            drop_class=self.drop_class,
            cached_features=self,
            assessment=HeadAssessment(self) if self.head.has_uncertainty else None,
            early_exit=early_exit.early_exit_of(self),
            features=self.features,
            calibration=calibration.ScoreCalibration(
                self.calibration,
                lambda samples: (self.features(samples),),
                lambda rows: self.head.scores_refit(rows[0]),
                self.index,
            ),
        )

    def drop_class(self, name: str) -> None:
        """Remove a class whose samples are all forgotten; later classes move up by one column."""
        left = self.index.without(name)
        self.head.drop_class(self.classes.index(name))
        self.index = left

    def features(self, samples: Sequence[Sample]) -> Tensor:
        """Return float32 [B, D], fixed whatever is learned and whichever samples come together."""
        return self.reader(samples)

    def read(self, samples: Sequence[Sample]) -> Tensor:
        """Return the features [B, D] of samples, for `scores`."""
        return self.features(samples)

    def refresh_features(self, reading: Tensor) -> Tensor:
        """Return float32 [B, D], the reading [B, D] itself: features are fixed."""
        return reading

    def scores(self, reading: Tensor) -> Tensor:
        """Return float64 [B, C] of a reading [B, D], by the weights in use while learning."""
        return self.head.scores(reading)

    def state_dict(self) -> State:
        """Return the head's statistics, the names of its columns, and the calibration."""
        return {
            "head": self.head.state_dict(),
            "classes": list(self.classes),
            "calibration": self.calibration.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned `state`."""
        self.index = ClassIndex(state["classes"])
        self.head.load_state_dict(state["head"])
        self.calibration.load_state_dict(state.get("calibration", calibration.Calibration().state_dict()))


def build_closed_form(
    options: FrozenFeatureOptions,
    context: LearnerContext,
    head: Callable[..., RidgeHead],
    *,
    sharpness: float,
    learner: type[RidgeLearner[Statistics]] | None = None,
) -> RidgeLearner[Statistics]:
    """Return a learner on frozen features, with a head made by what takes the width and the options.

    learner: its class; None: RidgeLearner itself.
    """
    blocks = context.blocks(options.blocks)
    made = head(
        block_features.concat_width(context.backbone, blocks),
        **options.model_dump(exclude={"name", "blocks", "tta_views"}),
        seed=context.seed,
        device=context.compute.device,
    )
    return (learner or RidgeLearner)(
        context.backbone,
        context.compute,
        made,
        blocks=blocks,
        tta_views=options.tta_views,
        sharpness=sharpness,
        group=context.group,
    )


def build_ridge(options: RidgeOptions, context: LearnerContext) -> RidgeLearner[Statistics]:
    """Return a ridge head on frozen features."""
    head = functools.partial(ridge_head.RidgeHead, keeps_uncertainty=context.keeps_uncertainty)
    return build_closed_form(options, context, head, sharpness=RIDGE_SHARPNESS)


RIDGE = LearnerFactory(RidgeLearnerOptions, build_ridge, distributed=True, keeps_statistics=True)
