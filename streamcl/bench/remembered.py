"""Frozen features kept by sample id, so that cells of one process compute each image's once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from streamcl.config import RunConfig
from streamcl.events import Sample
from streamcl.learners.fused import FrozenReader, Reader
from streamcl.protocols import Learner


class Remembered:
    """A reader that asks the one inside only for samples it has not read yet. `kept` is shared by cells."""

    def __init__(self, reader: Reader, kept: dict[str, Tensor]) -> None:
        self._reader = reader
        self._kept = kept

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        """float32 [B, F] of B samples."""
        fresh = list({sample.id: sample for sample in samples if sample.id not in self._kept}.values())
        if fresh:
            for sample, features in zip(fresh, self._reader(fresh), strict=True):
                self._kept[sample.id] = features.clone()
        return torch.stack([self._kept[sample.id] for sample in samples])


class Memory:
    """What cells share: features by everything that decides them. One data set's are held at a time."""

    def __init__(self) -> None:
        self._source = ""
        self._kept: dict[str, dict[str, Tensor]] = {}

    def lend(self, learner: Learner, config: RunConfig) -> None:
        """Have a learner with a frozen reader read through the memory; others stay as they are."""
        reader = getattr(learner, "reader", None)
        if not isinstance(reader, FrozenReader):
            return
        source = f"{config.source.model_dump_json()} {config.source.args.get('seed', config.seed)}"
        if source != self._source:
            self._source, self._kept = source, {}
        key = f"{reader.backbone.fingerprint} {reader.blocks} {reader.views} {reader.compute}"
        learner.reader = Remembered(reader, self._kept.setdefault(key, {}))  # type: ignore[attr-defined]
