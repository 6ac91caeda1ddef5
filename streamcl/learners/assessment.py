"""Stability and novelty of predictions, of learners with ridge heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
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
    from streamcl.learners.blended_learner import BlendedLearner
    from streamcl.learners.ridge import RidgeLearner


class _Assessment(ABC):
    """Assesses the predictions of a learner whose scores have uncertainty."""

    def __init__(self, learner: RidgeLearner[Any] | BlendedLearner[Any]) -> None:
        self._learner: Any = learner  # either, with readings of its own

    def assess(self, samples: Sequence[Sample]) -> AssessedScores:
        """Return the logits of samples, one or more, with their stability and novelty."""
        scores, (variance, novelty) = self._uncertain(self._learner.read(samples))
        flips = stability.flip_probability(scores, variance)
        return AssessedScores(self._learner.calibration.for_predictions(scores), flips, novelty)

    def change_probabilities(self, reading: Any, erased: int) -> Tensor:
        """Return the probability [N] that the erasure of so many samples has changed the class of each.

        m of n samples left out move a score by m / n of its later variance.

        Args:
            reading: the learner's, of N samples.
            erased: the number of samples that are not in the statistics any more.
        """
        scores, uncertainty = self._uncertain(reading)
        left = self._samples
        return stability.flip_probability(scores, uncertainty.variance * erased / max(left + erased, 1))

    @property
    @abstractmethod
    def _samples(self) -> int:
        """How many samples the learner has learned and not forgotten."""

    @abstractmethod
    def _uncertain(self, reading: Any) -> tuple[Tensor, ScoreUncertainty]:
        """Return scores [N, C] of a reading, and their uncertainty."""


class HeadAssessment(_Assessment):
    """Assesses the predictions of a learner with one head, which has uncertainty."""

    @property
    def _samples(self) -> int:
        return sum(self._learner.head.counts)

    def _uncertain(self, reading: Tensor) -> tuple[Tensor, ScoreUncertainty]:
        head = self._learner.head
        return head.scores_refit(reading), head.uncertainty(reading)


class BlendAssessment(_Assessment):
    """Assesses the predictions of a frozen and an adapted branch together.

    The branches' scores count as independent, so their variance is a lower bound: both have learned the same
    samples. Novelty is the frozen branch's, which has learned all of them.
    """

    @property
    def _samples(self) -> int:
        return sum(self._learner.exact.head.counts)

    def _uncertain(self, reading: Any) -> tuple[Tensor, ScoreUncertainty]:
        learner, reading = self._learner, self._learner.refresh_features(reading)
        variance, novelty = learner.exact.head.uncertainty(reading.features)
        if learner.adapted is not None and reading.adapted is not None:
            adapted = learner.adapted.head.uncertainty(reading.adapted)
            variance = learner.adapted.blend_variance(variance, adapted.variance)
        return learner.scores_refit(reading), stability.ScoreUncertainty(variance, novelty)
