"""Relearn time: how many forgotten samples bring back what was forgotten, against models that never knew it.

For a class that shows on samples of it that no model has learned, for single samples on these samples.

Anamnesis and relearn time (Chundawat et al., arXiv 2205.08096; Golatkar et al., arXiv 1911.04933), counted in
samples, as a closed-form head has no epochs.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from streamcl.audit.closed_form_models import Form, combined
from streamcl.audit.data import Examples, Floats, Sums

PAPER = "arXiv 2205.08096"
REGAINED = 0.9  # of the accuracy that all of the forgotten samples give


def relearn_times(
    form: Form, models: Iterable[Sums], lessons: Examples, check: Examples, target: float
) -> Floats:
    """[M]: log2 of the samples of `lessons` after which a model's accuracy on `check` reaches `target`.

    Looked at after 1, 2, 4, ... samples, in their order.
    """
    return np.array([_doublings(form, each, lessons, check, target) for each in models])


def accuracy_after(form: Form, sums: Sums, lessons: Examples, check: Examples) -> float:
    """Accuracy on `check` once `lessons` are learned on top of the sums."""
    model = form.solve(combined(sums, form.measure(lessons)))
    return float((model(check.features).argmax(dim=1) == check.labels).double().mean())


def doublings_until(accuracies: Floats, target: float) -> float:
    """log2 of the samples after which the target is reached, of accuracies after 1, 2, 4, ... of them.

    The whole number of doublings, where the target is never reached or only by the last accuracy.
    """
    reached = np.flatnonzero(accuracies >= target)
    return float(reached[0] if len(reached) else len(accuracies) - 1)


def _doublings(form: Form, sums: Sums, lessons: Examples, check: Examples, target: float) -> float:
    count = 1
    while count < len(lessons):
        if accuracy_after(form, sums, lessons.at(torch.arange(count)), check) >= target:
            break
        count *= 2
    return float(np.log2(min(count, len(lessons))))
