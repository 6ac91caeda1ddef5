"""Relearn time: how many forgotten samples restore what was forgotten, beside models that never learned it.

Anamnesis and relearn time (Chundawat et al., arXiv 2205.08096; Golatkar et al., arXiv 1911.04933), counted in
samples, as a closed-form head has no epochs. For a class it is measured on held-out samples of the class, for
single samples on these samples.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from streamcl.audit.closed_form_models import ModelFactory, add_statistics
from streamcl.audit.data import Examples, Floats, ModelStatistics

RELEARN_PAPER = "arXiv 2205.08096"
REGAINED = 0.9
"""Share, of the accuracy after all forgotten samples, at which they count as relearned: the anamnesis index
takes a margin of the original model's accuracy, here 10 %."""


def relearn_times(
    factory: ModelFactory,
    models: Iterable[ModelStatistics],
    lessons: Examples,
    check: Examples,
    target: float,
) -> Floats:
    """Return [M], log2 of the samples after which a model's accuracy on `check` reaches `target`.

    Args:
        factory: solves the models.
        models: statistics of M models.
        lessons: the samples to learn, in their order; accuracy is computed after 1, 2, 4, ... of them.
        check: the samples on which accuracy is measured.
        target: a share in [0, 1].
    """
    return np.array([_relearn_time(factory, each, lessons, check, target) for each in models])


def accuracy_after(
    factory: ModelFactory, known: ModelStatistics, lessons: Examples, check: Examples
) -> float:
    """Return the accuracy on `check` after `lessons` are added to the statistics."""
    model = factory.solve(add_statistics(known, factory.measure(lessons)))
    return float((model(check.features).argmax(dim=1) == check.labels).double().mean())


def log2_samples_until(accuracies: Floats, target: float) -> float:
    """Return log2 of the samples at which `target` is reached, of accuracies after 1, 2, 4, ... samples.

    The number of doublings where the target is never reached or only by the last accuracy.
    """
    reached = np.flatnonzero(accuracies >= target)
    return float(reached[0] if len(reached) else len(accuracies) - 1)


def _relearn_time(
    factory: ModelFactory, known: ModelStatistics, lessons: Examples, check: Examples, target: float
) -> float:
    count = 1
    while count < len(lessons):
        if accuracy_after(factory, known, lessons.at(torch.arange(count)), check) >= target:
            break
        count *= 2
    return float(np.log2(min(count, len(lessons))))
