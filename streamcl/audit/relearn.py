"""Relearn time: how many samples of a forgotten class bring it back, against models that never knew it.

Anamnesis and relearn time (Chundawat et al., arXiv 2205.08096; Golatkar et al., arXiv 1911.04933), counted in
samples, as a closed-form head has no epochs.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from streamcl.audit.material import Examples, Floats
from streamcl.audit.models import ClosedForm, combined
from streamcl.heads.ridge import Statistics

PAPER = "arXiv 2205.08096"
REGAINED = 0.9  # of the accuracy that all of the forgotten samples give


def relearn_times(
    form: ClosedForm, models: Iterable[Statistics], lessons: Examples, check: Examples, target: float
) -> Floats:
    """[M]: log2 of the samples of `lessons` after which a model's accuracy on `check` reaches `target`.

    Looked at after 1, 2, 4, ... samples, in their order.
    """
    return np.array([_doublings(form, statistics, lessons, check, target) for statistics in models])


def accuracy_after(form: ClosedForm, statistics: Statistics, lessons: Examples, check: Examples) -> float:
    """Accuracy on `check` once `lessons` are learned on top of the sums."""
    model = form.solve(combined(statistics, form.measure(lessons)))
    return float((model(check.features).argmax(dim=1) == check.labels).double().mean())


def _doublings(
    form: ClosedForm, statistics: Statistics, lessons: Examples, check: Examples, target: float
) -> float:
    count = 1
    while count < len(lessons):
        if accuracy_after(form, statistics, lessons.at(torch.arange(count)), check) >= target:
            break
        count *= 2
    return float(np.log2(min(count, len(lessons))))
