"""Stability and novelty of predictions, of learners with ridge heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from streamcl.capabilities.interfaces import AssessedScores
from streamcl.events import Sample
from streamcl.learners.lazy_imports import lazy_imports

with lazy_imports():
    from streamcl.heads import stability

if TYPE_CHECKING:
    from streamcl.learners.ridge import RidgeLearner
    from streamcl.learners.ridge_lora import RidgeLoRALearner


class HeadAssessment:
    """Assesses the predictions of a learner with one head, which has uncertainty."""

    def __init__(self, learner: RidgeLearner[Any]) -> None:
        self._learner = learner

    def assess(self, samples: Sequence[Sample]) -> AssessedScores:
        """Return the logits of samples, one or more, with their stability and novelty."""
        learner, features = self._learner, self._learner.features(samples)
        scores = learner.head.scores_refit(features)
        variance, novelty = learner.head.uncertainty(features)
        flips = stability.flip_probability(scores, variance)
        return AssessedScores(learner.sharpness * scores, flips, novelty)


class BlendAssessment:
    """Assesses the predictions of a frozen and an adapted branch together.

    The branches' scores count as independent, so their variance is a lower bound: both have learned the same
    samples. Novelty is the frozen branch's, which has learned all of them.
    """

    def __init__(self, learner: RidgeLoRALearner) -> None:
        self._learner = learner

    def assess(self, samples: Sequence[Sample]) -> AssessedScores:
        """Return the logits of samples, one or more, with their stability and novelty."""
        learner, reading = self._learner, self._learner.read(samples)
        scores = learner.scores_refit(reading)
        variance, novelty = learner.exact.head.uncertainty(reading.features)
        if learner.adapted is not None and reading.adapted is not None:
            adapted = learner.adapted.head.uncertainty(reading.adapted)
            variance = learner.adapted.blend_variance(variance, adapted.variance)
        flips = stability.flip_probability(scores, variance)
        return AssessedScores(learner.sharpness * scores, flips, novelty)
