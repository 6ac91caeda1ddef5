"""A closed-form head on a frozen backbone: no gradients, no order, exact forgetting by subtraction."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic

from streamcl.capabilities.declaration import Capabilities
from streamcl.capabilities.interfaces import LearnedListener
from streamcl.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from streamcl.events import Batch, Sample, StepResult
from streamcl.heads.closed_form_head import ClosedFormHead, S
from streamcl.learners.assessment import HeadAssessment
from streamcl.learners.class_index import ClassIndex
from streamcl.learners.factory import LearnerContext, LearnerFactory
from streamcl.learners.lazy_imports import lazy_imports
from streamcl.learners.ridge_options import FrozenFeatureOptions, RidgeLearnerOptions, RidgeOptions
from streamcl.learners.statistics import ClosedFormStatistics
from streamcl.learners.step import LogitLearner, PreparedStep, Transaction, prepare_step
from streamcl.protocols import Rollback, State, savepoint_of

with lazy_imports():
    import torch

    from streamcl.heads import ridge as ridge_head
    from streamcl.heads import stability, view_pair_head
    from streamcl.learners import block_features, calibration, early_exit, predictions, robust_view

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


class RidgeLearner(LogitLearner, Generic[S]):
    """Ridge regression to one-hot targets on tokens of several frozen blocks (RanPAC, arXiv 2307.02251).

    Each block gives its class token and its central patch token, layer-normalised; all of them side by side
    are the features, and `tta_views` of 2 averages them over the image and its mirrored inner part. What
    `learn` predicts comes from weights that were solved a little earlier and have taken in what came since
    (see `refit_fraction` and `defer_solve`); `predict` uses weights of all that is known. `sharpness`
    multiplies the scores before the softmax that losses are of; confidences have factors of their own (see
    `calibration`). `robust` reads robust views, which a ViewPairRidgeHead learns beside the images; None: no
    views.
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
        robust: FeatureReader | None = None,
    ) -> None:
        self.group, self.robust = group, robust
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
        of_last_solve = self.last_solve_scores(features)
        step = self.prepared(batch, scores, of_last_solve, self.head.uncertainty_in_use(features))
        to_learn = self.to_learn(batch.samples, features) if step.rows else features
        if not step.rows or not predictions.all_finite(to_learn):
            return step.refused()
        learned = step.learned(features)
        with Transaction(self.savepoint()):
            self.calibration.update(scores[step.rows], step.targets)
            self.add(to_learn[step.rows], step.targets, step.index)
            self.statistics.notify(batch.labelled, (to_learn[step.rows],))
        return learned

    def to_learn(self, samples: Sequence[Sample], features: Tensor) -> Tensor:
        """Return what the head learns, [B, D], or [B, 2 D] where it learns robust views; read on all ranks.

        Args:
            samples: those of a batch.
            features: [B, D], of these.
        """
        if self.robust is None:
            return features
        mine = self.robust(self.group.local_samples(samples))
        return torch.cat([features, self.group.all_gather_rows(mine, samples)], dim=1)

    def with_robust_rows(self, features: Tensor, samples: Sequence[Sample]) -> Tensor:
        """Return what the head learns, [B, D] or [B, 2 D], of samples that this process alone reads.

        Args:
            features: [B, D], of the samples.
            samples: B of them.
        """
        return features if self.robust is None else torch.cat([features, self.robust(samples)], dim=1)

    def refused(self, batch: Batch) -> StepResult:
        """Return the predictions for a batch of one sample or more that is not learned; change no state."""
        features = self.features(batch.samples)
        uncertainty, of_last_solve = self.head.uncertainty_in_use(features), self.last_solve_scores(features)
        return self.prepared(batch, self.scores(features), of_last_solve, uncertainty).refused()

    def prepared(
        self, batch: Batch, scores: Tensor, of_last_solve: Tensor, uncertainty: ScoreUncertainty | None = None
    ) -> PreparedStep:
        """Return a batch with what is predicted of it before it is learned.

        Args:
            batch: B samples, one or more.
            scores: [B, C], by the weights in use, of which predictions are.
            of_last_solve: [B, C], those of `last_solve_scores`, of which losses are.
            uncertainty: of the scores, where it is known.
        """
        calibrated = self.calibration.before_learning(scores)
        step = prepare_step(batch, self.sharpness * of_last_solve, self.index, calibrated)
        if uncertainty is None:
            return step
        flips = stability.flip_probability(scores, uncertainty.variance)
        made = predictions.with_assessment(step.predictions, flips, uncertainty.novelty)
        return replace(step, predictions=made)

    def add(self, features: Tensor, targets: Tensor, index: ClassIndex) -> None:
        """Add samples. Where it may fail half-way the caller restores a savepoint.

        Args:
            features: [B, D] or [B, 2 D], as of `to_learn`.
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
        return ClosedFormStatistics((self.head,), self._read_to_learn, self.index, self._listeners)

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

    def _read_to_learn(self, samples: Sequence[Sample]) -> tuple[Tensor, ...]:
        return (self.with_robust_rows(self.features(samples), samples),)

    def read(self, samples: Sequence[Sample]) -> Tensor:
        """Return the features [B, D] of samples, for `scores`."""
        return self.features(samples)

    def refresh_features(self, reading: Tensor) -> Tensor:
        """Return float32 [B, D], the reading [B, D] itself: features are fixed."""
        return reading

    def scores(self, reading: Tensor) -> Tensor:
        """Return float64 [B, C] of a reading [B, D], by the weights in use while learning."""
        return self.head.scores(reading)

    def last_solve_scores(self, reading: Tensor) -> Tensor:
        """Return float64 [B, C] of a reading [B, D], by weights that change more slowly than those in use."""
        return self.head.last_solve_scores(reading)

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
    robust: FeatureReader | None = None,
) -> RidgeLearner[Statistics]:
    """Return a learner on frozen features, with a head made by what takes the width and the options.

    learner: its class; None: RidgeLearner itself. robust: see there.
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
        robust=robust,
    )


def build_ridge(options: RidgeOptions, context: LearnerContext) -> RidgeLearner[Statistics]:
    """Return a ridge head on frozen features."""
    head = functools.partial(_head, keeps_uncertainty=context.keeps_uncertainty)
    return build_closed_form(
        options, context, head, sharpness=RIDGE_SHARPNESS, robust=_robust_reader(options, context)
    )


def _robust_reader(options: RidgeOptions, context: LearnerContext) -> FeatureReader | None:
    if options.robust_share is None:
        return None
    blocks = context.blocks(options.blocks)
    reader = block_features.FrozenReader(context.backbone, context.compute, blocks)
    return robust_view.RobustReader(reader, context.backbone.image_size)


def _head(width: int, *, robust_share: float | None, **options: Any) -> RidgeHead:
    if robust_share is None:
        return ridge_head.RidgeHead(width, **options)
    return view_pair_head.ViewPairRidgeHead(width, robust_share=robust_share, **options)


RIDGE = LearnerFactory(RidgeLearnerOptions, build_ridge, distributed=True, keeps_statistics=True)
