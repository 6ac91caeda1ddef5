"""One gradient step a batch and nothing against forgetting: the floor of every comparison."""

from __future__ import annotations

from streamcl.learners.gradient_learner import GradientLearner


class FinetuneLearner(GradientLearner):
    """Cross-entropy over all known classes, one step a batch; no mask, no buffer, no consolidation.

    On a model with adapters it is naive sequential fine-tuning of LoRA; on one without, a frozen backbone
    with an online linear head.
    """
