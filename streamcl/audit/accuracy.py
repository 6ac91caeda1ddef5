"""Accuracy on what was retained, forgotten and never seen, and the loss on what was forgotten."""

from __future__ import annotations

import numpy as np

from streamcl.audit.answers import Group
from streamcl.audit.data import Floats


def forget_accuracy(group: Group) -> Floats:
    """[M]: share of the forgotten samples named by their class. Too low is a trace as well as too high."""
    return np.asarray(group.forget.right.mean(axis=1))


def retain_accuracy(group: Group) -> Floats:
    """[M]: share right of the retained samples that each model has learned."""
    learned = group.member.sum(axis=1).clip(min=1)
    return np.asarray((group.retain.right & group.member).sum(axis=1) / learned)


def test_accuracy(group: Group) -> Floats:
    """[M]: share of held-out samples named right."""
    return np.asarray(group.test.right.mean(axis=1))


def forget_loss(group: Group) -> Floats:
    """[M]: mean loss on the forgotten samples, nats. Far above the references' it betrays what was deleted.

    For a class that is gone: the loss on the model's own best guess, that is how unsure it is.
    """
    return np.asarray(group.forget.loss.mean(axis=1))
