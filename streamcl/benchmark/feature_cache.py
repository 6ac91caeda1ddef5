"""Frozen features kept by image, so that cells of one process compute each image's once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from streamcl.config.options.run import RunConfig
from streamcl.events import Sample
from streamcl.learners.adapted_branch import AdaptedBranch
from streamcl.learners.block_features import FeatureReader, FrozenReader, PrefixReader
from streamcl.learners.hybrid import RidgeLoRALearner
from streamcl.protocols import Learner

CachedFeatures = tuple[Tensor, ...]
"""Of one sample: its features [F] and, where a branch begins on the way, each view's tokens there [N, d]."""


class Remembered:
    """A reader that asks the one inside only for samples it has not read yet. `kept` is shared by cells."""

    def __init__(self, reader: FeatureReader, kept: dict[str, CachedFeatures]) -> None:
        self._reader = reader
        self._kept = kept

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        """float32 [B, F] of B samples."""
        rows = self._rows(samples, lambda fresh: [self._reader(fresh)])
        return torch.stack([row[0] for row in rows])

    def _rows(
        self, samples: Sequence[Sample], read: Callable[[list[Sample]], list[Tensor]]
    ) -> list[CachedFeatures]:
        """What is kept of each sample, in order, once the new ones have been read."""
        keys = [_key(sample) for sample in samples]
        fresh = {key: sample for key, sample in zip(keys, samples, strict=True) if key not in self._kept}
        if fresh:
            columns = read(list(fresh.values()))
            for number, key in enumerate(fresh):
                self._kept[key] = tuple(column[number].clone() for column in columns)
        return [self._kept[key] for key in keys]


class RememberedPrefix(Remembered):
    """One for a learner with a branch that begins at block `cut`: the tokens there are kept as well."""

    _reader: PrefixReader

    def read(self, samples: Sequence[Sample], cut: int) -> tuple[Tensor, list[Tensor]]:
        """The features [B, F], and the tokens that block `cut` is given, for each view."""

        def inside(fresh: Sequence[Sample]) -> list[Tensor]:
            features, views = self._reader.read(fresh, cut)
            return [features, *views]

        features, *views = zip(*self._rows(samples, inside), strict=True)
        return torch.stack(features), [torch.stack(view) for view in views]


class RememberedBranch:
    """A branch's features, computed once for each image from when its adapters hold still.

    Bit-equal to computing them again, since no row depends on its neighbours.
    """

    def __init__(self, branch: AdaptedBranch) -> None:
        self._branch, self._inside = branch, branch.features
        self._kept: dict[bytes, Tensor] = {}

    def __call__(self, tokens: Tensor) -> Tensor:
        """float32 [B, F] of tokens [B, N, d]."""
        if not self._branch.frozen:
            return self._inside(tokens)
        rows = tokens.detach().contiguous().view(len(tokens), -1).view(torch.uint8).cpu().numpy()
        keys = [blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
        fresh = {key: number for number, key in enumerate(keys) if key not in self._kept}
        if fresh:
            features = self._inside(tokens[list(fresh.values())])
            self._kept |= {key: row.clone() for key, row in zip(fresh, features, strict=True)}
        return torch.stack([self._kept[key] for key in keys])


class FeatureCache:
    """What cells share: features by everything that decides them. One data set's are held at a time."""

    def __init__(self) -> None:
        self._source = ""
        self._kept: dict[str, dict[str, CachedFeatures]] = {}

    def lend(self, learner: Learner, config: RunConfig) -> None:
        """Have a learner with a frozen reader read through the memory; others stay as they are."""
        branch = learner.adapted if isinstance(learner, RidgeLoRALearner) else None
        holder: Any = learner.exact if isinstance(learner, RidgeLoRALearner) else learner
        reader = getattr(holder, "reader", None)
        if not isinstance(reader, FrozenReader):
            return
        source = config.source.model_dump_json()
        if source != self._source:
            self._source, self._kept = source, {}
        first = None if branch is None else branch.adapters.first_block
        key = f"{reader.backbone.fingerprint} {reader.blocks} {reader.views} {reader.compute} {first}"
        kept = self._kept.setdefault(key, {})
        if branch is None:
            holder.reader = Remembered(reader, kept)
            return
        holder.reader = RememberedPrefix(reader, kept)
        lent: Any = branch
        lent.features = RememberedBranch(branch)


def _key(sample: Sample) -> str:
    """Tells an image from all others of a source, one drawn for another seed under the same id among them."""
    return f"{sample.id} {crc32(sample.image.tobytes())}"
