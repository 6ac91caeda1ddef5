"""Distances between audited and retrained models: KLoM by margins, Tug-of-War by accuracies."""

from __future__ import annotations

import numpy as np

from streamcl.audit.accuracy import forget_accuracy, retain_accuracy, test_accuracy
from streamcl.audit.data import Flags, Floats, ModelGroup
from streamcl.audit.membership import leave_one_out_mean, variance_floor

KLOM_PAPER = "arXiv 2410.23232"
"""Georgiev et al., "Attribute-to-Delete", section 3.1; here between fitted normal distributions, which for 64
models are steadier than histograms."""
TUG_OF_WAR_PAPER = "arXiv 2406.01257"
"""Zhao et al., "What makes unlearning hard", equation 1."""


def klom(margins: Floats, erased: Flags) -> Floats:
    """Return [B], the mean over samples of KL(erased || retrained) in nats; 0 is best.

    Args:
        margins: [P, N], of all models.
        erased: bool [B, P], which of them are the erased ones, in each of B assignments.
    """
    one, other = _moments(margins, erased), _moments(margins, ~erased)
    variances = one[1] / other[1]
    shift = (one[0] - other[0]) ** 2 / other[1]
    divergence: Floats = 0.5 * (variances - 1 - np.log(variances) + shift)
    return np.asarray(divergence.mean(axis=1))


def tug_of_war(group: ModelGroup, references: ModelGroup) -> Floats:
    """Return [M], the product over forget, retain and test of 1 - |accuracy - the references' mean|.

    1 is best. A reference is compared with the other references.
    """
    product = np.ones(len(group))
    for accuracy in (forget_accuracy, retain_accuracy, test_accuracy):
        values, others = accuracy(group), accuracy(references)
        product *= 1 - np.abs(values - leave_one_out_mean(others, inside=group is references))
    return product


def _moments(margins: Floats, chosen: Flags) -> tuple[Floats, Floats]:
    """Mean and variance [B, N] over the chosen models of each row of bool [B, P]."""
    share = chosen / chosen.sum(axis=1, keepdims=True)  # [B, P]
    centre = margins.mean(axis=0)
    mean = share @ (margins - centre)
    variance = share @ (margins - centre) ** 2 - mean**2
    return mean + centre, np.maximum(variance, variance_floor(margins))
