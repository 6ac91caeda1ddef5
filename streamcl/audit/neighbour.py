"""The neighbour-class attack: a forgotten class shows in how the classes next to it are given its samples.

Ebrahimpour-Boroojeny et al. (arXiv 2506.20893): a model that has merely lost a class's output gives its
samples other probabilities of the neighbouring classes than a model that never saw it.
"""

from __future__ import annotations

import numpy as np

from streamcl.audit.answers import Group
from streamcl.audit.data import Floats

PAPER = "arXiv 2506.20893"


def nearest_class(references: Group) -> int | None:
    """The column that the references give the forgotten samples most probability of; None without any."""
    chances = references.forget.chances
    if chances is None:
        return None
    ranked = np.argsort(-chances.mean(axis=(0, 1)))
    held = set(references.test.labels.tolist())
    return next((int(column) for column in ranked if int(column) in held), None)


def told_from_neighbour(group: Group, column: int) -> Floats:
    """[M]: how well the probability of the neighbour class tells its held-out samples from forgotten ones.

    The area under the curve: 0.5 where the forgotten class hides in its neighbour, 1 where it stands out.
    """
    forgotten, held = group.forget.chances, group.test.chances
    if forgotten is None or held is None:
        raise ValueError("probabilities are only kept for class requests")
    own = group.test.labels == column
    pairs = zip(held[:, own, column], forgotten[:, :, column], strict=True)
    return np.array([_area(own_chances, other) for own_chances, other in pairs])


def _area(high: Floats, low: Floats) -> float:
    """P(high > low), ties counted half."""
    ranked = np.sort(low)
    below, upto = (np.searchsorted(ranked, high, side=side) for side in ("left", "right"))
    return float((below + upto).mean() / (2 * len(low)))
