"""The default learner: a closed form remembers and forgets exactly, LoRA adds what frozen features lack."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from streamcl.capabilities.declaration import Capabilities
from streamcl.capabilities.interfaces import LearnedSample
from streamcl.events import Batch, Sample, StepResult
from streamcl.learners.adapted_branch import (
    AdaptedBranch,
    LoRABranchOptions,
    RidgeLoRAFeatures,
    build_branch,
)
from streamcl.learners.assessment import BlendAssessment
from streamcl.learners.blended_learner import BlendedLearner
from streamcl.learners.factory import LearnerContext, LearnerFactory
from streamcl.learners.lazy_imports import lazy_imports
from streamcl.learners.ridge import build_ridge
from streamcl.learners.ridge_lora_options import RidgeBranchOptions, RidgeLoRAOptions
from streamcl.learners.statistics import ClosedFormStatistics
from streamcl.learners.step import Transaction, labelled_rows
from streamcl.protocols import Learner, State

with lazy_imports():
    from streamcl.learners import block_features, early_exit, latent_factory, predictions

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.heads.statistics import Statistics


class RidgeLoRALearner(BlendedLearner[AdaptedBranch]):
    """Two ridge heads' scores as one: on frozen features, and on features adapted early in the stream."""

    adapted_until = 0
    """The stream offset up to which samples have trained the adapters."""

    def read(self, samples: Sequence[Sample]) -> RidgeLoRAFeatures:
        """Return the features of samples, one or more, for `scores` and `learn_from`."""
        features, views = self._read(samples)  # [B, D]
        if self.adapted is None or not self.adapted.frozen:
            return RidgeLoRAFeatures(features, views, None)
        return RidgeLoRAFeatures(features, views, self.adapted.features(views[0]))

    def refresh_features(self, reading: RidgeLoRAFeatures) -> RidgeLoRAFeatures:
        """Return an older reading with the adapted features that it lacks, if they are frozen by now."""
        if self.adapted is None or not self.adapted.frozen or reading.adapted is not None:
            return reading
        return replace(reading, views=(), adapted=self.adapted.features(reading.views[0]))

    def read_together(self, samples: Sequence[Sample]) -> RidgeLoRAFeatures:
        """Read on all ranks, each its share of the samples; the views are of this rank's share alone."""
        mine = self.read(self.exact.group.local_samples(samples))
        adapted = None if mine.adapted is None else self.exact.group.all_gather_rows(mine.adapted, samples)
        return RidgeLoRAFeatures(
            self.exact.group.all_gather_rows(mine.features, samples), mine.views, adapted
        )

    def learn_from(self, batch: Batch, reading: RidgeLoRAFeatures) -> StepResult:
        """Learn the batch from features that were read of its samples."""
        features, views, adapted = reading.features, reading.views, reading.adapted
        scores = self.scores(reading)  # [B, C]
        step = self.exact.prepared(
            batch, scores, self.last_solve_scores(reading), self.uncertainty_in_use(reading)
        )
        rows, targets = step.rows, step.targets
        to_learn = self.exact.to_learn(batch.samples, features) if rows else features
        if not rows or not predictions.all_finite(to_learn, *([] if adapted is None else [adapted])):
            return step.refused()
        learned = step.learned(features)
        adapting = self.adapted is not None and not self.adapted.frozen
        with Transaction(self.exact.savepoint()) as transaction:
            if self.adapted is not None:
                transaction.cover(self.adapted.savepoint())
            if not self._learn_adapted(views, adapted, batch, targets, len(step.index)):
                transaction.refuse()
                return step.refused()
            self.exact.add(to_learn[rows], targets, step.index)
            self.calibration.update(scores[rows], targets)
            subtractable: list[Tensor | None] = [to_learn[rows]]
            if self.adapted is not None:
                subtractable.append(None if adapted is None or adapting else adapted[rows])
            self.statistics.notify(batch.labelled, subtractable)
        if adapting:
            self.adapted_until = batch.end
        return learned

    def consolidate(self) -> Mapping[str, Any]:
        """Freeze the adapted branch at the first plateau; later there is nothing to consolidate."""
        if self.adapted is None or self.adapted.frozen:
            return {}
        self.adapted.freeze()
        return {"frozen": True}

    @property
    def statistics(self) -> ClosedFormStatistics[Statistics]:
        """The removable statistics of both heads.

        Rows of samples that trained the adapters are not reported for the adapted head: they cannot be
        subtracted there.
        """
        heads = [self.exact.head, *([] if self.adapted is None else [self.adapted.head])]
        return ClosedFormStatistics(tuple(heads), self._features, self.exact.index, self._listeners)

    @property
    def capabilities(self) -> Capabilities:
        """Statistics that samples are subtracted from, and a branch of shared weights that can be dropped."""
        return Capabilities(
            statistics=self.statistics,
            drop_class=self.drop_class,
            shared_weights=self.weights_trained_on,
            drop_adapted_branch=self.drop_adapted,
            cached_features=self,
            assessment=BlendAssessment(self),
            calibration=self.score_calibration,
            early_exit=early_exit.early_exit_of(self.exact, self),
            adapter_export=self.adapter_export,
        )

    def weights_trained_on(self, samples: Iterator[Sequence[LearnedSample]]) -> tuple[str, ...]:
        """Return the weights that samples trained before the adapters were frozen; later ones train none."""
        if self.adapted is None or not self.adapted_until:
            return ()
        touched = any(each.offset < self.adapted_until for chunk in samples for each in chunk)
        return ("adapters", "adapted statistics") if touched else ()

    def state_dict(self) -> State:
        """Return both branches, without the backbone's own weights."""
        return {**super().state_dict(), "adapted_until": self.adapted_until}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned `state`; raise as that of a blended learner does."""
        super().load_state_dict(state)
        self.adapted_until = int(state["adapted_until"])

    def _read(self, samples: Sequence[Sample]) -> tuple[Tensor, list[Tensor]]:
        """Return frozen features [B, D], and each view's tokens where an adapted branch begins."""
        reader = self.exact.reader
        if self.adapted is None or not isinstance(reader, block_features.PrefixReader):
            return self.exact.features(samples), []
        return reader.read(samples, self.adapted.adapters.first_block)

    def _features(self, samples: Sequence[Sample]) -> list[Tensor]:
        """Return what each head learns of samples, read anew by this process alone."""
        features, views = self._read(samples)
        adapted = [] if self.adapted is None else [self.adapted.features(views[0])]
        return [self.exact.with_robust_rows(features, samples), *adapted]

    def _learn_adapted(
        self, views: Sequence[Tensor], features: Tensor | None, batch: Batch, targets: Tensor, classes: int
    ) -> bool:
        """Adapt during warm-up and add the features; return False where they are not finite."""
        if self.adapted is None:
            return True
        if features is None:
            mine = labelled_rows(self.exact.group.local_samples(batch.samples)) or [
                0
            ]  # one too many counts nowhere
            if not self.adapted.adapt([view[mine] for view in views], targets, classes, batch.labelled):
                return False
            features = self.exact.group.all_gather_rows(self.adapted.features(views[0]), batch.samples)
            if not predictions.all_finite(features):
                return False
        self.adapted.head.grow(classes)
        self.adapted.head.update(features[labelled_rows(batch.samples)], targets)
        return True


def build_ridge_lora(
    ridge: RidgeBranchOptions, lora: LoRABranchOptions, context: LearnerContext
) -> RidgeLoRALearner:
    """Return the closed form with an adapted branch beside it, where its options leave room for one."""
    exact = build_ridge(ridge, context)
    if not lora.warmup_samples:
        return RidgeLoRALearner(exact, None)
    branch = functools.partial(build_branch, ridge, lora, context, context.seed)
    return RidgeLoRALearner(exact, branch(), branch)


def build_with_latents(options: RidgeLoRAOptions, context: LearnerContext) -> Learner:
    """Return the learner that the options describe, with a store of latents where they have a budget."""
    if options.latents is None or not options.latents.budget:
        return build_ridge_lora(options.ridge, options.lora, context)
    return latent_factory.build_latent_ridge_lora(options.ridge, options.lora, options.latents, context)


RIDGE_LORA = LearnerFactory(
    RidgeLoRAOptions,
    build_with_latents,
    distributed=True,
    keeps_statistics=True,
)
