"""The sums of some samples in one head as a value: joined, with samples taken out, and as a row of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from streamcl.errors import ForgettingError
from streamcl.forgetting.statistics.gram_factor import packed, root, unpacked, without
from streamcl.storage.plain_state import Array

CohortRow: TypeAlias = tuple[Any, ...]
"""cohort, head, samples, ranks, width, seal, labels, sums, root."""

LABEL = np.dtype([("digest", "S16"), ("count", "<i8")])


@dataclass(frozen=True, slots=True)
class StatisticsBlock:
    """The sums of some samples of one cohort in one head: R [r, D], and by class a count and Q [D]."""

    samples: int
    root: Array
    sums: Mapping[bytes, tuple[int, Array]]

    @classmethod
    def of(cls, rows: Array, labels: Sequence[bytes]) -> StatisticsBlock:
        """Return the block of rows [n, D] with the digests of their classes."""
        sums = {
            label: (labels.count(label), rows[[each == label for each in labels]].sum(axis=0))
            for label in dict.fromkeys(labels)
        }
        return cls(len(rows), root(rows), sums)

    def joined(self, other: StatisticsBlock) -> StatisticsBlock:
        """Both as one."""
        sums = dict(self.sums)
        for label, (count, total) in other.sums.items():
            here, there = sums.get(label, (0, np.zeros_like(total)))
            sums[label] = (here + count, there + total)
        return StatisticsBlock(
            self.samples + other.samples, root(np.concatenate([self.root, other.root])), sums
        )

    def without(self, other: StatisticsBlock, rows: Array) -> StatisticsBlock:
        """Return the block without `other`, that of `rows`. Raise ForgettingError where it is no part."""
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
        ranks, width = self.root.shape
        data = packed(self.root)
        seal = _seal(cohort, head, self.samples, ranks, width, labels, sums, data)
        return cohort, head, self.samples, ranks, width, seal, labels, sums, data

    @classmethod
    def of_row(cls, row: CohortRow) -> StatisticsBlock | None:
        """Return the block that was written so; None where the row is damaged."""
        cohort, head, samples, ranks, width, seal, labels, sums, data = row
        if _seal(cohort, head, samples, ranks, width, labels, sums, data) != seal:
            return None
        totals = np.frombuffer(sums, "<f8").reshape(-1, width).copy()
        entries = np.frombuffer(labels, LABEL)
        named = {
            bytes(each["digest"]).ljust(16, b"\0"): (int(each["count"]), total)
            for each, total in zip(entries, totals, strict=True)
        }
        return cls(samples, unpacked(data, ranks, width), named)


def _seal(cohort: bytes, *facts: Any) -> bytes:
    """A hash of a block by which damage is noticed."""
    found = hashlib.blake2b(cohort, digest_size=16)
    for fact in facts:
        found.update(fact if isinstance(fact, bytes) else f"{fact};".encode())
    return found.digest()
