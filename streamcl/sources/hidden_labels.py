"""Batches some labels of which are hidden from the learner, so that their samples are only predicted."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from streamcl.events import Batch


def hide_labels(batch: Batch, offsets: Collection[int]) -> Batch:
    """Return the batch without the labels of the samples at these offsets."""
    if not offsets:
        return batch
    placed = zip(batch.offsets, batch.samples, strict=True)
    samples = tuple(replace(each, label=None) if at in offsets else each for at, each in placed)
    return replace(batch, samples=samples)
