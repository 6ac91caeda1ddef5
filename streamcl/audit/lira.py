"""Likelihood-ratio membership attacks, sample by sample, on the margins of the forgotten samples.

LiRA (Carlini et al., arXiv 2112.03570) asks whether a model looks more like models that learned the sample
or more like models that did not. U-LiRA (Hayes et al., arXiv 2403.01218) asks the same of models from which
the sample was erased, which is the attack that counts here.
"""

from __future__ import annotations

import numpy as np

from streamcl.audit.answers import Group
from streamcl.audit.leave_one_out import floored, moments_beside
from streamcl.audit.material import Flags, Floats

LIRA, U_LIRA = "arXiv 2112.03570", "arXiv 2403.01218"


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
    return np.array([_told_apart(margins[row], margins[~row]) for row in first])


def _told_apart(erased: Floats, retrained: Floats) -> float:
    shares = []
    for own, other in ((erased, retrained), (retrained, erased)):
        inside = moments_beside(own, inside=True)
        outside = moments_beside(other, inside=False)
        shares.append((_log_density(own, *inside) > _log_density(own, *outside)).mean())
    return float(np.mean(shares))


def memorisation(references: Group, unforgotten: Group) -> Floats:
    """[N]: how many spreads learning a forgotten sample moves its margin (arXiv 1906.05271, by margins)."""
    out, learned = references.forget.margin, unforgotten.forget.margin
    spread = np.sqrt(floored(out.var(axis=0), out))
    return np.asarray((learned.mean(axis=0) - out.mean(axis=0)) / spread)


def _log_density(x: Floats, mean: Floats, variance: Floats) -> Floats:
    density: Floats = -0.5 * ((x - mean) ** 2 / variance + np.log(variance))
    return density
