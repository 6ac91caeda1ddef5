"""Features of held-out samples, each of which is read once: to fit confidences, and for every evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from streamcl.capabilities.interfaces import CalibratedScores
from streamcl.events import Sample
from streamcl.learners.lazy_imports import lazy_imports

with lazy_imports():
    import torch

if TYPE_CHECKING:
    from torch import Tensor

MAX_FEATURE_BYTES = 64 << 20
"""Features that are kept for evaluations at most: of 5,000 samples of a ViT-S that is read at four blocks."""
HOLDOUT_BATCH = 64
"""Samples, as many as a batch has."""

SampleKey: TypeAlias = tuple[str, str, bytes]
"""Id, label, and a hash of the picture."""


def sample_key(sample: Sample) -> SampleKey:
    """Return the key under which a sample's features are kept; an id may stand for several pictures."""
    pixels = np.ascontiguousarray(sample.image)
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.data)
    return sample.id, str(sample.label), digest.digest()


class HoldoutFeatures:
    """Features that a learner has read of held-out samples, without pixels, until they change.

    Beyond `max_bytes` the samples that came first stay: an evaluation takes them in the same order each time,
    so it then reads the others alone.

    Args:
        max_bytes: of features.
    """

    def __init__(self, max_bytes: int = MAX_FEATURE_BYTES) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._rows: dict[SampleKey, tuple[Tensor, ...]] = {}
        self._version: object = None

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: SampleKey) -> bool:
        return key in self._rows

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, ...]:
        """Return the features [d] of a sample."""
        return self._rows[key]

    def read(
        self, samples: Sequence[Sample], calibration: CalibratedScores, *, always_keep: bool = False
    ) -> tuple[Tensor, ...]:
        """Return the features of N samples, one or more, tensors [N, d]; read those that are not kept.

        Args:
            samples: N samples.
            calibration: the learner's, which reads them.
            always_keep: keep these beyond `max_bytes` too.
        """
        self.drop_outdated(calibration)
        keys = [sample_key(sample) for sample in samples]
        rows = {key: self._rows[key] for key in keys if key in self._rows}
        missing = [
            (key, sample) for key, sample in dict(zip(keys, samples, strict=True)).items() if key not in rows
        ]
        for start in range(0, len(missing), HOLDOUT_BATCH):
            some = missing[start : start + HOLDOUT_BATCH]
            tensors = calibration.read([sample for _, sample in some])
            for (key, _), *own in zip(some, *tensors, strict=True):
                rows[key] = tuple(own)
                self._keep(key, rows[key], always=always_keep)
        return stacked([rows[key] for key in keys])

    def drop_outdated(self, calibration: CalibratedScores) -> None:
        """Drop all features where they are of adapters that the learner has no more."""
        if self._version != calibration.features_version:
            self._rows, self._bytes, self._version = {}, 0, calibration.features_version

    def keep_only(self, keys: Collection[SampleKey]) -> None:
        """Drop the features of all other samples."""
        self._rows = {key: rows for key, rows in self._rows.items() if key in keys}
        self._bytes = sum(map(_bytes_of, self._rows.values()))

    def _keep(self, key: SampleKey, rows: tuple[Tensor, ...], *, always: bool) -> None:
        size = _bytes_of(rows)
        if always or self._bytes + size <= self._max_bytes:
            self._rows[key] = tuple(row.clone() for row in rows)  # or a whole batch would stay in memory
            self._bytes += size


def stacked(rows: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return the features of N samples as tensors [N, d]; none for no samples.

    Args:
        rows: the features [d] of each sample.
    """
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def _bytes_of(rows: tuple[Tensor, ...]) -> int:
    return sum(row.nbytes for row in rows)
