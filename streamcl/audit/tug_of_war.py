"""Tug-of-War: one figure for how near a model is to retraining on all three kinds of samples.

Zhao et al., "What makes unlearning hard" (arXiv 2406.01257), equation 1.
"""

from __future__ import annotations

import numpy as np

from streamcl.audit.accuracy import forget_accuracy, retain_accuracy, test_accuracy
from streamcl.audit.answers import Group
from streamcl.audit.data import Floats
from streamcl.audit.leave_one_out import means_beside

PAPER = "arXiv 2406.01257"


def tug_of_war(group: Group, references: Group) -> Floats:
    """[M]: product over forget, retain and test of 1 - |accuracy - the references' mean|; 1 is best.

    A reference is compared with the others.
    """
    product = np.ones(len(group))
    for accuracy in (forget_accuracy, retain_accuracy, test_accuracy):
        values, others = accuracy(group), accuracy(references)
        product *= 1 - np.abs(values - means_beside(others, inside=group is references))
    return product
