"""RMIA: membership by how a sample's likelihood has risen compared with samples that no model has learned.

Zarifzadeh et al., "Low-cost high-power membership inference attacks" (arXiv 2312.03262), equations 2 to 4,
with the offline estimate of p(x) of their section 3.3.
"""

from __future__ import annotations

import numpy as np

from streamcl.audit.answers import Answers, Group
from streamcl.audit.data import Floats
from streamcl.audit.leave_one_out import means_beside

PAPER = "arXiv 2312.03262"
GAMMA, A = 1.0, 0.3  # the paper's values for offline attacks


def rmia(group: Group, references: Group) -> Floats:
    """[M]: over forgotten x and held-out z, how often p(x | model) / p(x) beats p(z | model) / p(z)."""
    inside = group is references
    forgotten = _ratios(group.forget, references.forget, inside=inside)
    population = np.sort(_ratios(group.test, references.test, inside=inside), axis=1)
    beaten = [np.searchsorted(z, x / GAMMA, side="right") for z, x in zip(population, forgotten, strict=True)]
    return np.array([found.mean() / population.shape[1] for found in beaten])


def _ratios(answers: Answers, references: Answers, *, inside: bool) -> Floats:
    """p(x | model) / p(x), [M, N]."""
    unlearned = means_beside(np.exp(-references.loss), inside=inside)
    ratios: Floats = np.exp(-answers.loss) / (0.5 * ((1 + A) * unlearned + (1 - A)))
    return ratios
