"""The sums of some samples in one head as a value: added, with samples taken out, and as a row of a file.

A sum of outer products G is stored as a root R with R^T R = G, in as many rows as it has ranks, which says no
more than G. A class of n samples has a G of rank n at most, so its upper trapezoidal root, the R of a QR
decomposition of the rows, takes n * D numbers less n * (n - 1) / 2, and never more than the symmetric half.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from streamcl.errors import ForgettingError
from streamcl.storage.plain_state import Array

CohortRow: TypeAlias = tuple[Any, ...]
"""cohort, head, samples, ranks, width, checksum, labels, sums, root."""

LABEL = np.dtype([("digest", "S16"), ("count", "<i8")])

SPAN_TOLERANCE = 1e-9
"""Tolerance for the part of rows outside the span of the sum they are subtracted from, relative to size."""


@dataclass(frozen=True, slots=True)
class StatisticsBlock:
    """The sums of some samples of one cohort in one head: R [r, D], and by class a count and Q [D]."""

    samples: int
    root: Array
    sums: Mapping[bytes, tuple[int, Array]]

    @classmethod
    def of(cls, rows: Array, labels: Sequence[bytes]) -> StatisticsBlock:
        """Return the block of some rows.

        Args:
            rows: float64 [n, D].
            labels: the digest of each row's class.
        """
        return cls(len(rows), root(rows), grouped_sums(rows, labels))

    def __add__(self, other: StatisticsBlock) -> StatisticsBlock:
        sums = dict(self.sums)
        for label, (count, total) in other.sums.items():
            here, there = sums.get(label, (0, np.zeros_like(total)))
            sums[label] = (here + count, there + total)
        return StatisticsBlock(
            self.samples + other.samples, root(np.concatenate([self.root, other.root])), sums
        )

    def without(self, other: StatisticsBlock, rows: Array) -> StatisticsBlock:
        """Return the block without `other`.

        Args:
            other: the block of `rows`.
            rows: float64 [n, D].

        Raises:
            ForgettingError: `other` is not a part of this block.
        """
        left = self.samples - other.samples
        sums = dict(self.sums)
        for label, (count, total) in other.sums.items():
            here, there = sums.pop(label, (0, total))
            if here < count:
                raise ForgettingError("more samples of a class are to be subtracted than the statistics hold")
            if here > count:
                sums[label] = (here - count, there - total)
        return StatisticsBlock(left, without(self.root, rows, left), sums)

    def row(self, cohort: bytes, head: int) -> CohortRow:
        """Return the columns of its row in the file, with a hash of cohort, head and content."""
        labels = np.array([(label, count) for label, (count, _) in self.sums.items()], LABEL).tobytes()
        sums = b"".join(total.astype("<f8", copy=False).tobytes() for _, total in self.sums.values())
        sizes = (self.samples, *self.root.shape)
        content = (labels, sums, packed(self.root))
        return cohort, head, *sizes, _checksum(cohort, head, *sizes, *content), *content

    @classmethod
    def of_row(cls, row: CohortRow) -> StatisticsBlock | None:
        """Return the block that was written so; None where the row is damaged."""
        cohort, head, samples, ranks, width, checksum, labels, sums, data = row
        if _checksum(cohort, head, samples, ranks, width, labels, sums, data) != checksum:
            return None
        totals = np.frombuffer(sums, "<f8").reshape(-1, width).copy()
        named = {
            bytes(each["digest"]).ljust(16, b"\0"): (int(each["count"]), total)
            for each, total in zip(np.frombuffer(labels, LABEL), totals, strict=True)
        }
        return cls(samples, unpacked(data, ranks, width), named)


def grouped_sums(rows: Array, labels: Sequence[Any]) -> dict[Any, tuple[int, Array]]:
    """Return the number and the sum [D] of each class's rows, in the order of first appearance.

    Args:
        rows: float64 [n, D].
        labels: the class of each row.
    """
    return {
        label: (labels.count(label), rows[[each == label for each in labels]].sum(axis=0))
        for label in dict.fromkeys(labels)
    }


def root(rows: Array) -> Array:
    """Return R [min(n, D), D], zero left of its diagonal, with R^T R = rows^T rows for float64 [n, D]."""
    return np.array(rows) if len(rows) <= 1 else np.asarray(np.linalg.qr(rows, mode="r"))


def without(root_of_all: Array, rows: Array, left: int) -> Array:
    """Return the root [r', D] of R^T R - rows^T rows, by eigenvalues in the span of R alone.

    Args:
        root_of_all: R, float64 [r, D].
        rows: float64 [m, D], to be subtracted.
        left: the number of samples that remain, which bounds r'.

    Raises:
        ForgettingError: the rows are not among those that R was made of, as far as can be seen.
    """
    basis, corner = np.linalg.qr(root_of_all.T)  # [D, r], [r, r]
    inside = rows @ basis  # [m, r]
    stray = float(np.abs(rows - inside @ basis.T).max(initial=0.0))
    values, vectors = np.linalg.eigh(corner @ corner.T - inside.T @ inside)  # rising
    gone = max(0, len(values) - left)
    scale = max(float(np.square(root_of_all).sum()), 1e-300)
    surplus = max(float(np.abs(values[:gone]).max(initial=0.0)), -float(values.min(initial=0.0)))
    if stray**2 > SPAN_TOLERANCE**2 * scale or surplus > SPAN_TOLERANCE * scale:
        raise ForgettingError("not all of the samples are in the stored statistics")
    remaining = np.sqrt(values[gone:].clip(min=0.0))[:, None] * vectors[:, gone:].T
    return root(remaining @ basis.T)


def packed(factor: Array) -> bytes:
    """Return a root [r, D] as bytes, without the zeros left of its diagonal."""
    return b"".join(row[i:].astype("<f8", copy=False).tobytes() for i, row in enumerate(factor))


def unpacked(data: bytes, ranks: int, width: int) -> Array:
    """Return the root [ranks, width] that `packed` wrote."""
    numbers = np.frombuffer(data, "<f8")
    factor, start = np.zeros((ranks, width)), 0
    for i, row in enumerate(factor):
        row[i:] = numbers[start : start + width - i]
        start += width - i
    return factor


def _checksum(cohort: bytes, *facts: Any) -> bytes:
    """Return a hash of a block by which damage is noticed."""
    found = hashlib.blake2b(cohort, digest_size=16)
    for fact in facts:
        found.update(fact if isinstance(fact, bytes) else f"{fact};".encode())
    return found.digest()
