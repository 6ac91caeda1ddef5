"""When the weights of a closed-form head are to be solved anew."""

from __future__ import annotations

from torch import Tensor

from streamcl.heads.interim_solve import MAX_GROWN_CLASSES
from streamcl.heads.solving import is_due
from streamcl.heads.statistics import Statistics

MIN_SAMPLES_BETWEEN_SOLVES = 48
"""D over this: samples between solves for a class that doubled, at least; 64 at D = 3072. With fewer, each
small batch would solve while classes are new; twice as many cost 1 to 2 points right before learning."""

MIN_SAMPLES_WITH_FACTOR = 24
"""The same where new samples are taken in by the factor of the last solve. Development packs lose nothing."""


def falls_due(
    statistics: Statistics, counts: Tensor, solved: Tensor, refit_fraction: float, *, taken_in: bool
) -> bool:
    """Return whether a solve falls due when samples are learned.

    Args:
        statistics: those before.
        counts: int64 [C], samples of each class after it.
        solved: int64 [C], those of the last solve that fell due.
        refit_fraction: see RidgeHead.
        taken_in: whether the weights in use take in new samples, by the factor of their solve.
    """
    unknown = (counts > 0) & (solved == 0)
    apart = MIN_SAMPLES_WITH_FACTOR if taken_in else MIN_SAMPLES_BETWEEN_SOLVES
    return is_due(
        counts,
        solved,
        counts > statistics.counts,
        refit_fraction,
        apart=statistics.gram.width // apart,
        scores_new=taken_in and int(unknown.sum()) <= MAX_GROWN_CLASSES,
    )
