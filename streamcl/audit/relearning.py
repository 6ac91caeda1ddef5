"""Relearn time: how many forgotten samples restore what was forgotten, beside models that never learned it.

Anamnesis and relearn time (Chundawat et al., arXiv 2205.08096; Golatkar et al., arXiv 1911.04933), counted in
samples, as a closed-form head has no epochs. For a class it is measured on held-out samples of the class, for
single samples on these samples.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from streamcl.audit.closed_form_models import ClosedFormModels
from streamcl.audit.data import Examples, Floats, ModelStatistics
from streamcl.audit.significance import MeasureResult, compare_with_references

REGAINED_SHARE = 0.9
"""Share, of the accuracy after all forgotten samples, at which they count as relearned: the anamnesis index
takes a margin of the original model's accuracy, here 10 %."""


def relearn_result(*times: Floats, centre: float | None = None) -> MeasureResult:
    """Return the measure of relearn times [M] of the audited models, the references and the unforgotten.

    Args:
        times: log2 of samples, of each group.
        centre: that of the model retrained on all retained samples, where it is known.
    """
    name, paper = "relearn time, log2 samples", "arXiv 2205.08096"
    return compare_with_references(name, *times, step=1.0, centre=centre, paper=paper)


def relearn_times(
    solver: ClosedFormModels,
    models: Iterable[ModelStatistics],
    examples: Examples,
    check: Examples,
    target: float,
) -> Floats:
    """Return [M], log2 of the samples after which a model's accuracy on `check` reaches `target`.

    Args:
        solver: of the models.
        models: statistics of M models.
        examples: the samples to learn, in their order; accuracy is computed after 1, 2, 4, ... of them.
        check: the samples on which accuracy is measured.
        target: a share in [0, 1].
    """

    def samples(known: ModelStatistics) -> int:
        count = 1
        while count < len(examples):
            if accuracy_after(solver, known, examples.at(torch.arange(count)), check) >= target:
                return count
            count *= 2
        return len(examples)

    return np.log2([samples(each) for each in models])


def accuracy_after(
    solver: ClosedFormModels, known: ModelStatistics, examples: Examples, check: Examples
) -> float:
    """Return the accuracy on `check` after `lessons` are added to the statistics."""
    model = solver.solve(known + solver.measure(examples))
    return float((model(check.features).argmax(dim=1) == check.labels).double().mean())


def log2_samples_until(accuracies: Floats, target: float) -> float:
    """Return log2 of the number of samples after which `target` is reached.

    The number of doublings where the target is never reached or only by the last accuracy.

    Args:
        accuracies: [K], each a share in [0, 1], after 1, 2, 4, ... samples.
        target: a share in [0, 1].
    """
    reached = np.flatnonzero(accuracies >= target)
    return float(reached[0] if len(reached) else len(accuracies) - 1)
