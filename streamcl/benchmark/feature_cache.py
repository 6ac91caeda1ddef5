"""Caches frozen features by image, so that cells of one process compute them once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, TypeVar

import torch
from torch import Tensor

from streamcl.config.options.run import RunConfig
from streamcl.events import Sample
from streamcl.learners.adapted_branch import AdaptedBranch
from streamcl.learners.block_features import FeatureReader, FrozenReader, PrefixReader
from streamcl.learners.holdout_features import SampleKey, sample_key
from streamcl.learners.latent_ridge_lora import LatentRidgeLoRALearner
from streamcl.learners.ridge_lora import RidgeLoRALearner
from streamcl.protocols import Learner

Key = TypeVar("Key", SampleKey, bytes)
CachedFeatures = tuple[Tensor, ...]
"""Of one sample: its features [F] and, for a branch, the tokens [N, d] of each view at its first block."""


class CachedReader:
    """Wraps a feature reader and calls it only for samples that are not in the cache, which cells share.

    Args:
        reader: returns the features [B, F] of B samples.
        cache: by sample, its features [F] and tokens; it grows by what is read.
    """

    def __init__(self, reader: FeatureReader, cache: dict[SampleKey, CachedFeatures]) -> None:
        self._reader = reader
        self._cache = cache

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        """Return features, float32 [B, F], of B samples."""
        rows = self._rows(samples, lambda fresh: [self._reader(fresh)])
        return torch.stack([row[0] for row in rows])

    def _rows(
        self, samples: Sequence[Sample], read: Callable[[list[Sample]], list[Tensor]]
    ) -> list[CachedFeatures]:
        keys = [sample_key(sample) for sample in samples]
        return _through(self._cache, keys, lambda fresh: read([samples[i] for i in fresh]))


class CachedPrefixReader(CachedReader):
    """Also caches the tokens at block `cut`, where a learner's branch begins."""

    _reader: PrefixReader

    def read(self, samples: Sequence[Sample], cut: int) -> tuple[Tensor, list[Tensor]]:
        """Return features [B, F] and, for each view, the input tokens [B, N, d] of block `cut`."""

        def inside(fresh: Sequence[Sample]) -> list[Tensor]:
            features, views = self._reader.read(fresh, cut)
            return [features, *views]

        features, *views = zip(*self._rows(samples, inside), strict=True)
        return torch.stack(features), [torch.stack(view) for view in views]


class CachedBranch:
    """Caches a branch's features by image as soon as its adapters are frozen.

    Bit-equal to computing them again, since no row depends on the others of its batch.
    """

    def __init__(self, branch: AdaptedBranch) -> None:
        self._branch, self._compute = branch, branch.features
        self._cache: dict[bytes, CachedFeatures] = {}

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return features, float32 [B, F], of tokens [B, N, d]."""
        if not self._branch.frozen:
            return self._compute(tokens)
        rows = tokens.detach().contiguous().view(len(tokens), -1).view(torch.uint8).cpu().numpy()
        keys = [blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
        found = _through(self._cache, keys, lambda fresh: [self._compute(tokens[fresh])])
        return torch.stack([row[0] for row in found])


class FeatureCache:
    """Features by backbone, blocks, views and precision; of one data set at a time, to bound memory."""

    def __init__(self) -> None:
        self._source = ""
        self._cache: dict[str, dict[SampleKey, CachedFeatures]] = {}

    def attach(self, learner: Learner, config: RunConfig) -> None:
        """Route a learner's frozen reader through the cache; learners without one are left unchanged."""
        branch = learner.adapted if isinstance(learner, RidgeLoRALearner) else None
        first = None if branch is None else branch.adapters.first_block
        if isinstance(learner, LatentRidgeLoRALearner) and learner.adapted is not None:
            first = learner.adapted.training.first_block
        holder: Any = learner
        if isinstance(learner, RidgeLoRALearner | LatentRidgeLoRALearner):
            holder = learner.exact
        reader = getattr(holder, "reader", None)
        if not isinstance(reader, FrozenReader):
            return
        source = config.source.model_dump_json()
        if source != self._source:
            self._source, self._cache = source, {}
        key = f"{reader.backbone.fingerprint} {reader.blocks} {reader.tta_views} {reader.compute} {first}"
        cache = self._cache.setdefault(key, {})
        holder.reader = (CachedReader if first is None else CachedPrefixReader)(reader, cache)
        if branch is not None:
            patched: Any = branch
            patched.features = CachedBranch(branch)


def _through(
    cache: dict[Key, CachedFeatures], keys: Sequence[Key], read: Callable[[list[int]], list[Tensor]]
) -> list[CachedFeatures]:
    """The cached tensors of each key, in order; `read` returns columns of rows at the places of new keys."""
    fresh = {key: place for place, key in enumerate(keys) if key not in cache}
    if fresh:
        columns = read(list(fresh.values()))
        for number, key in enumerate(fresh):
            cache[key] = tuple(column[number].clone() for column in columns)
    return [cache[key] for key in keys]
