"""Stability and novelty of predictions, of learners with ridge heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from streamcl.capabilities.prediction_interfaces import AssessedScores
from streamcl.events import Sample
from streamcl.learners.lazy_imports import lazy_imports

with lazy_imports():
    from streamcl.heads import stability

if TYPE_CHECKING:
    from torch import Tensor

    from streamcl.heads.stability import ScoreUncertainty
    from streamcl.learners.latent_ridge_lora import LatentRidgeLoRALearner
    from streamcl.learners.ridge import RidgeLearner
    from streamcl.learners.ridge_lora import RidgeLoRALearner


class HeadAssessment:
    """Assesses the predictions of a learner with one head, which has uncertainty."""

    def __init__(self, learner: RidgeLearner[Any]) -> None:
        self._learner = learner

    def assess(self, samples: Sequence[Sample]) -> AssessedScores:
        """Return the logits of samples, one or more, with their stability and novelty."""
        scores, (variance, novelty) = self._uncertain(self._learner.read(samples))
        flips = stability.flip_probability(scores, variance)
        return AssessedScores(self._learner.calibration.for_predictions(scores), flips, novelty)

    def change_probabilities(self, reading: Tensor, erased: int) -> Tensor:
        """Return the probability [N] that the erasure of so many samples has changed the class of each.

        Args:
            reading: the features [N, D].
            erased: the number of samples that are not in the statistics any more.
        """
        scores, uncertainty = self._uncertain(reading)
        return _changed_by_erasure(scores, uncertainty.variance, sum(self._learner.head.counts), erased)

    def _uncertain(self, features: Tensor) -> tuple[Tensor, ScoreUncertainty]:
        head = self._learner.head
        return head.scores_refit(features), head.uncertainty(features)


class BlendAssessment:
    """Assesses the predictions of a frozen and an adapted branch together.

    The branches' scores count as independent, so their variance is a lower bound: both have learned the same
    samples. Novelty is the frozen branch's, which has learned all of them.
    """

    def __init__(self, learner: RidgeLoRALearner | LatentRidgeLoRALearner) -> None:
        self._learner: Any = learner  # either, with readings of its own

    def assess(self, samples: Sequence[Sample]) -> AssessedScores:
        """Return the logits of samples, one or more, with their stability and novelty."""
        scores, (variance, novelty) = self._uncertain(self._learner.read(samples))
        flips = stability.flip_probability(scores, variance)
        return AssessedScores(self._learner.calibration.for_predictions(scores), flips, novelty)

    def change_probabilities(self, reading: Any, erased: int) -> Tensor:
        """Return the probability [N] that the erasure of so many samples has changed the class of each.

        Args:
            reading: the learner's, of N samples.
            erased: the number of samples that are not in the statistics any more.
        """
        scores, uncertainty = self._uncertain(reading)
        left = sum(self._learner.exact.head.counts)
        return _changed_by_erasure(scores, uncertainty.variance, left, erased)

    def _uncertain(self, reading: Any) -> tuple[Tensor, ScoreUncertainty]:
        learner, reading = self._learner, self._learner.refresh_features(reading)
        variance, novelty = learner.exact.head.uncertainty(reading.features)
        if learner.adapted is not None and reading.adapted is not None:
            adapted = learner.adapted.head.uncertainty(reading.adapted)
            variance = learner.adapted.blend_variance(variance, adapted.variance)
        return learner.scores_refit(reading), stability.ScoreUncertainty(variance, novelty)


def _changed_by_erasure(scores: Tensor, variance: Tensor, left: int, erased: int) -> Tensor:
    """Return the probability [N]: m of n samples left out move a score by m / n of its later variance."""
    return stability.flip_probability(scores, variance * erased / max(left + erased, 1))
