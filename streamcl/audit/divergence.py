"""KLoM: the divergence between the margins of erased and of retrained models, sample by sample.

Georgiev et al., "Attribute-to-Delete" (arXiv 2410.23232), section 3.1; here between fitted normal
distributions, which for 64 models are steadier than histograms.
"""

from __future__ import annotations

import numpy as np

from streamcl.audit.data import Flags, Floats
from streamcl.audit.leave_one_out import floored

PAPER = "arXiv 2410.23232"


def klom(margins: Floats, first: Flags) -> Floats:
    """[B]: mean over samples of KL(erased || retrained) in nats; 0 is best.

    margins [P, N] of all models; first bool [B, P]: which are the erased ones, in each of B ways to deal.
    """
    erased, retrained = _moments(margins, first), _moments(margins, ~first)
    variances = erased[1] / retrained[1]
    shift = (erased[0] - retrained[0]) ** 2 / retrained[1]
    divergence: Floats = 0.5 * (variances - 1 - np.log(variances) + shift)
    return np.asarray(divergence.mean(axis=1))


def _moments(margins: Floats, chosen: Flags) -> tuple[Floats, Floats]:
    """Mean and variance [B, N] over the chosen models of each row."""
    share = chosen / chosen.sum(axis=1, keepdims=True)  # [B, P]
    centre = margins.mean(axis=0)
    mean = share @ (margins - centre)
    variance = share @ (margins - centre) ** 2 - mean**2
    return mean + centre, floored(variance, margins)
