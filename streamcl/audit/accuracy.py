"""Accuracy and loss of a group of models, and the neighbour-class attack on a class erasure."""

from __future__ import annotations

import numpy as np
from scipy.stats import mannwhitneyu

from streamcl.audit.data import Floats, ModelGroup

NEIGHBOUR_PAPER = "arXiv 2506.20893"
"""Ebrahimpour-Boroojeny et al.: a model that only lost a class's output gives its samples other probabilities
of the neighbouring classes than a model that never saw it."""


def forget_accuracy(group: ModelGroup) -> Floats:
    """Return [M], the accuracy on forgotten samples; too low betrays an erasure as much as too high."""
    return np.asarray(group.forget.correct.mean(axis=1))


def retain_accuracy(group: ModelGroup) -> Floats:
    """Return [M], the accuracy on those retained samples that each model has learned."""
    learned = group.member.sum(axis=1).clip(min=1)
    return np.asarray((group.retain.correct & group.member).sum(axis=1) / learned)


def test_accuracy(group: ModelGroup) -> Floats:
    """Return [M], the accuracy on held-out samples."""
    return np.asarray(group.test.correct.mean(axis=1))


def forget_loss(group: ModelGroup) -> Floats:
    """Return [M], the mean loss on forgotten samples in nats; far above the references betrays an erasure.

    For an erased class it is the loss of the model's own best class, that is how unsure it is.
    """
    return np.asarray(group.forget.loss.mean(axis=1))


def neighbour_class(references: ModelGroup) -> int | None:
    """Return the column that forgotten samples get most probability of; None for other requests."""
    chances = references.forget.probabilities
    if chances is None:
        return None
    ranked = np.argsort(-chances.mean(axis=(0, 1)))
    held = set(references.test.labels.tolist())
    return next((int(column) for column in ranked if int(column) in held), None)


def neighbour_separability(group: ModelGroup, column: int) -> Floats:
    """Return [M], how well the probability of the neighbour class separates its samples from forgotten ones.

    Area under the ROC curve between the neighbour's held-out samples and the forgotten samples: 0.5 where
    the forgotten class hides in its neighbour, 1 where it stands out.

    Raises:
        ValueError: the group's probabilities were not kept, as the request is not for a class.
    """
    forgotten, held = group.forget.probabilities, group.test.probabilities
    if forgotten is None or held is None:
        raise ValueError("probabilities are only kept for class requests")
    own = held[:, group.test.labels == column, column].astype(np.float64)
    other = forgotten[:, :, column].astype(np.float64)
    wins = mannwhitneyu(own, other, axis=1, method="asymptotic").statistic
    return np.asarray(wins / (own.shape[1] * other.shape[1]))
