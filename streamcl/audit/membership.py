"""Likelihood-ratio membership attacks, sample by sample, on the margins of the forgotten samples.

LiRA (Carlini et al., arXiv 2112.03570) asks whether a model looks more like models that learned the sample
or more like models that did not. U-LiRA (Hayes et al., arXiv 2403.01218) asks the same of models from which
the sample was erased, which is the attack that counts here.
"""

from __future__ import annotations

import numpy as np

from streamcl.audit.answers import Group
from streamcl.audit.data import Flags, Floats, Ints
from streamcl.audit.leave_one_out import floored, moments_beside

LIRA, U_LIRA = "arXiv 2112.03570", "arXiv 2403.01218"
MOST = 100  # forgotten samples that U-LiRA looks at


def lira(group: Group, references: Group, unforgotten: Group) -> Flags:
    """[M, N]: for which of the forgotten samples a model looks as if it had learned them.

    Normal densities per sample; a model that is in a pool is left out of it.
    """
    margin = group.forget.margin
    out = moments_beside(references.forget.margin, inside=group is references)
    learned = moments_beside(unforgotten.forget.margin, inside=group is unforgotten)
    votes = _log_density(margin, *learned) > _log_density(margin, *out)
    return np.asarray(votes)


def u_lira(margins: Floats, first: Flags) -> Floats:
    """[B]: how often an attacker tells erased from retrained, 0.5 is chance.

    margins [P, N] of all models on the forgotten samples; first bool [B, P]: which of them are the erased
    ones, in each of B ways to deal. Every model is left out of the densities that judge it; the mean
    over samples and over both kinds.
    """
    looked_at = margins[:, :: -(-margins.shape[1] // MOST)]
    centred = looked_at - looked_at.mean(axis=0)
    powers = np.stack([centred, centred**2])  # [2, P, N]
    return np.array([_told_apart(powers, row) for row in first])


def _told_apart(powers: Floats, first: Flags) -> float:
    x, total = powers[0], powers.sum(axis=1)  # [P, N], [2, N]
    erased = powers[:, first].sum(axis=1)
    rows = first[:, None]
    own = np.where(rows, erased[:, None], (total - erased)[:, None]) - powers  # [2, P, N]
    other = total[:, None] - own - powers
    sizes = np.where(rows, first.sum(), (~first).sum())  # [P, 1]
    floor = 1e-6 * float(powers[1].mean()) + 1e-24
    told = _log_density(x, *_normal(own, sizes - 1, floor)) > _log_density(
        x, *_normal(other, len(first) - sizes, floor)
    )
    return float((told[first].mean() + told[~first].mean()) / 2)


def _normal(sums: Floats, count: Ints, floor: float) -> tuple[Floats, Floats]:
    """Mean and variance from sums of x and x^2 [2, P, N] of `count` [P, 1] models."""
    mean = sums[0] / count
    return mean, np.maximum((sums[1] / count - mean**2) * count / (count - 1), floor)


def memorisation(references: Group, unforgotten: Group) -> Floats:
    """[N]: how many spreads learning a forgotten sample moves its margin (arXiv 1906.05271, by margins)."""
    out, learned = references.forget.margin, unforgotten.forget.margin
    spread = np.sqrt(floored(out.var(axis=0), out))
    return np.asarray((learned.mean(axis=0) - out.mean(axis=0)) / spread)


def _log_density(x: Floats, mean: Floats, variance: Floats) -> Floats:
    density: Floats = -0.5 * ((x - mean) ** 2 / variance + np.log(variance))
    return density
