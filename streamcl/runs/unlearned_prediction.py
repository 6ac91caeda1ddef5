"""Predictions of a run of samples that nothing is learned from at that moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from streamcl.capabilities.declaration import capabilities_of
from streamcl.config.options.answer import AnswerOptions
from streamcl.events import Prediction, Sample
from streamcl.learners.predictions import to_predictions, with_assessment
from streamcl.protocols import Learner

Predict: TypeAlias = Callable[[Sequence[Sample]], Sequence[Prediction]]


def unlearned_predictor(learner: Learner, options: AnswerOptions) -> Predict | None:
    """Return what predicts samples at their arrival, and in an overload; None: the learner's `predict`."""
    if not options.log or capabilities_of(learner).assessment is None:
        return None

    def predict(samples: Sequence[Sample]) -> Sequence[Prediction]:
        assessment = capabilities_of(learner).assessment  # of the weights as they are now
        if assessment is None or not samples:
            return learner.predict(samples)
        found = assessment.assess(samples)
        made = to_predictions(found.logits, learner.classes)
        return with_assessment(made, found.flips, found.novelty)

    return predict
