"""Means and deviations of a pool of models, as they are for a model outside it or for each of its own."""

from __future__ import annotations

import numpy as np

from streamcl.audit.data import Floats


def means_beside(pool: Floats, *, inside: bool) -> Floats:
    """The mean over the models of pool [K, ...]; inside: for each model over the others, [K, ...]."""
    if not inside:
        return np.asarray(pool.mean(axis=0, keepdims=pool.ndim > 1))
    return np.asarray((pool.sum(axis=0, keepdims=True) - pool) / (len(pool) - 1))


def moments_beside(pool: Floats, *, inside: bool) -> tuple[Floats, Floats]:
    """Mean and variance over the models of pool [K, N]: [1, N], or inside for each model over the others."""
    mean = means_beside(pool, inside=inside)
    square = means_beside(pool**2, inside=inside)
    count = len(pool) - int(inside)
    return mean, floored((square - mean**2) * count / (count - 1), pool)


def floored(variance: Floats, pool: Floats) -> Floats:
    """No variance under a millionth of the mean one of the pool, so that no sample outweighs all others."""
    floor = 1e-6 * float(pool.var(axis=0).mean()) + 1e-24
    return np.maximum(variance, floor)
