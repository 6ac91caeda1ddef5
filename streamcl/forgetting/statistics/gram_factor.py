"""Sums of outer products in as many rows as they have ranks: R with R^T R = G, which says no more than G.

A class of n samples has a G of rank n at most, so its upper trapezoidal root, what a QR decomposition leaves
of the rows, takes n * D numbers less n * (n - 1) / 2, and never more than the symmetric half of G.
"""

from __future__ import annotations

import numpy as np

from streamcl.errors import ForgettingError
from streamcl.storage.plain_state import Array

TOLERANCE = 1e-9
"""Tolerance for the part of rows outside the span of the sum they are subtracted from, relative to size."""


def root(rows: Array) -> Array:
    """R [min(n, D), D], zero left of its diagonal, with R^T R = rows^T rows for rows [n, D], float64."""
    if len(rows) <= 1:
        return np.array(rows)
    return np.asarray(np.linalg.qr(rows, mode="r"))


def without(whole: Array, rows: Array, left: int) -> Array:
    """Return the root of R^T R - rows^T rows, a sum of `left` samples, by eigenvalues in the span of R alone.

    Raise ForgettingError where the rows are not among those that R was made of, as far as can be seen.
    """
    basis, corner = np.linalg.qr(whole.T)  # [D, r], [r, r]
    inside = rows @ basis  # [m, r]
    stray = float(np.abs(rows - inside @ basis.T).max(initial=0.0))
    values, vectors = np.linalg.eigh(corner @ corner.T - inside.T @ inside)  # rising
    gone = max(0, len(values) - left)
    scale = max(float(np.square(whole).sum()), 1e-300)
    if stray**2 > TOLERANCE**2 * scale or np.abs(values[:gone]).max(initial=0.0) > TOLERANCE * scale:
        raise ForgettingError("the samples are not all in the statistics that were kept")
    if float(values.min(initial=0.0)) < -TOLERANCE * scale:
        raise ForgettingError("the samples are not all in the statistics that were kept")
    kept = np.sqrt(values[gone:].clip(min=0.0))[:, None] * vectors[:, gone:].T
    return root(kept @ basis.T)


def packed(whole: Array) -> bytes:
    """Return the root without the zeros left of its diagonal."""
    return b"".join(row[i:].astype("<f8", copy=False).tobytes() for i, row in enumerate(whole))


def unpacked(data: bytes, ranks: int, width: int) -> Array:
    """Return the root of so many rows and columns."""
    numbers = np.frombuffer(data, "<f8")
    whole, start = np.zeros((ranks, width)), 0
    for i, row in enumerate(whole):
        row[i:] = numbers[start : start + width - i]
        start += width - i
    return whole
