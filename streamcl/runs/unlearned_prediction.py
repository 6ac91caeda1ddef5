"""Predictions of a run of samples that nothing is learned from at that moment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TypeAlias

import torch

from streamcl.capabilities.declaration import capabilities_of
from streamcl.capabilities.prediction_interfaces import ExitsEarly
from streamcl.config.options.run import RunConfig
from streamcl.events import Prediction, Sample
from streamcl.learners.predictions import to_predictions, with_assessment
from streamcl.protocols import Learner

logger = logging.getLogger(__name__)

Predict: TypeAlias = Callable[[Sequence[Sample]], Sequence[Prediction]]


def unlearned_predictor(learner: Learner, config: RunConfig) -> Predict | None:
    """Return what predicts samples at their arrival, and in an overload; None: the learner's `predict`.

    Raises:
        ConfigError: the learner has no exits, or the first one takes more work than is allowed.
    """
    options, capabilities = config.answer, capabilities_of(learner)
    if options.log and capabilities.assessment is None:
        logger.warning("answer.log has no effect: this learner cannot compute stability and novelty")
    if options.live_work is not None:
        if (exits := capabilities.early_exit) is None:
            raise config.refuse("answer.live_work", "this learner has no exits; ridge and ridge_lora have")
        if exits.costs[0] > options.live_work:
            least = f"the first exit takes {exits.costs[0]:.3f}"
            raise config.refuse("answer.live_work", f"{options.live_work} is less than {least}")
        return _early_predictor(learner, options.live_work)
    return _assessing_predictor(learner) if options.log and capabilities.assessment is not None else None


def _assessing_predictor(learner: Learner) -> Predict:
    def predict(samples: Sequence[Sample]) -> Sequence[Prediction]:
        assessment = capabilities_of(learner).assessment  # of the weights as they are now
        if assessment is None or not samples:
            return learner.predict(samples)
        found = assessment.assess(samples)
        made = to_predictions(found.logits, learner.classes)
        return with_assessment(made, found.flips, found.novelty)

    return predict


def _early_predictor(learner: Learner, work: float) -> Predict:
    def predict(samples: Sequence[Sample]) -> Sequence[Prediction]:
        exits = capabilities_of(learner).early_exit
        if exits is None or not samples:
            return learner.predict(samples)
        number, cost = deepest_exit(exits, work)
        walk, everything = exits.begin(samples), torch.arange(len(samples))
        for _ in range(number + 1):
            walk.advance(everything)
        made = to_predictions(walk.logits, learner.classes)
        return tuple(replace(each, work=round(cost, 4)) for each in made)

    return predict


def deepest_exit(exits: ExitsEarly, work: float) -> tuple[int, float]:
    """Return the number of the deepest exit within a share of the work, at least the first, and its share."""
    costs = list(accumulate(exits.costs))
    number = max((number for number, cost in enumerate(costs) if cost <= work), default=0)
    return number, costs[number]
