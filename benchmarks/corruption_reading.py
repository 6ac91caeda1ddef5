"""What a frozen ViT reads of a pack's clean, robust and corrupted images, each image once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corruption_kinds import KINDS, corrupted, resized
from stability import BACKBONE, DATA
from torch import Tensor

from streamcl.config.load import config_from_dict
from streamcl.events import NO_PIXELS, Sample
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.learners.block_features import concat_block_tokens, evenly_spaced_blocks, tta_views
from streamcl.learners.robust_view import robust_view
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute
from streams.datasets.npz import npz

TESTED = tuple(kind for kind in KINDS if kind != "gaussian_blur")  # which is a blur of the robust views
SEVERITIES = (3, 5)


@dataclass(frozen=True)
class Reading:
    """What a frozen ViT reads of N images.

    samples: without pixels. features: float32 [N, V, D], of each view. tokens: float16 [N, V', T, d], where
    the adapted branch begins, of the first views.
    """

    samples: tuple[Sample, ...]
    features: Tensor
    tokens: Tensor

    def of(self, places: Sequence[int]) -> Reading:
        """Some of the images."""
        chosen = list(places)
        return Reading(
            tuple(self.samples[place] for place in chosen), self.features[chosen], self.tokens[chosen]
        )


class Vision:
    """A frozen ViT-S that reads images of a pack, corrupted or not, and keeps what it read in a folder."""

    def __init__(self, size: int, cache: Path | None) -> None:
        self.settings = {"source": "digits", "backbone": {**BACKBONE, "image_size": size}}
        config = config_from_dict(self.settings)
        self.compute: Compute = build_compute(config)
        self.backbone: Backbone = build_vit(config, self.compute)
        self.size, self._cache = size, cache
        self._cut = self.backbone.depth // 3  # the first block with adapters, by default

    def read(self, name: str, samples: Sequence[Sample], views: int) -> Reading:
        """Read samples whose images have the size of the model; tokens are kept of the first views."""
        bare = tuple(replace(sample, image=NO_PIXELS) for sample in samples)
        path = None if self._cache is None else self._cache / f"{name}-{self.size}-{len(samples)}.npz"
        if path is not None and path.exists():
            with np.load(path) as kept:
                return Reading(bare, torch.from_numpy(kept["features"]), torch.from_numpy(kept["tokens"]))
        parts = [self._read(samples[start : start + 16], views) for start in range(0, len(samples), 16)]
        features, tokens = (torch.cat(columns) for columns in zip(*parts, strict=True))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, features=features.numpy(), tokens=tokens.numpy())
        return Reading(bare, features, tokens)

    def _read(self, samples: Sequence[Sample], views: int) -> tuple[Tensor, Tensor]:
        blocks = evenly_spaced_blocks(self.backbone.depth)
        with torch.no_grad(), self.compute.autocast():
            pixels = tta_views(self.backbone.prepare([sample.image for sample in samples]), 2)
            outputs = self.backbone.run(self.backbone.stem(torch.cat(pixels)), 0, blocks[-1] + 1)
            features = concat_block_tokens(self.backbone, outputs, blocks)
        tokens = outputs[self._cut - 1].half().unflatten(0, (2, -1)).transpose(0, 1)
        return features.unflatten(0, (2, -1)).transpose(0, 1), tokens[:, :views].clone()


@dataclass(frozen=True)
class Pack:
    """Readings of a pack: images to learn, their corrupted versions, and test images by corruption."""

    clean: Reading
    robust: Reading
    tests: Mapping[str, Reading]


def read_pack(vision: Vision, name: str, train: int, test: int) -> Pack:
    """Read the images of a pack: half as many again to draw from, all clean test images up to 400."""
    learned, tested = npz(DATA / f"{name}.npz")
    to_learn = [*drawn_images(learned, 3 * train // 2, vision.size)]
    views = [
        _changed(sample, "robust", robust_view(sample.image, vision.size, sample.id)) for sample in to_learn
    ]
    clean = [*drawn_images(tested, 400, vision.size)]
    tests = {"clean": vision.read(f"{name}-clean", clean, 1)}
    for kind in TESTED:
        for severity in SEVERITIES:
            key = f"{kind} {severity}"
            images = [
                _changed(each, key, corrupted(each.image, kind, severity, each.id)) for each in clean[:test]
            ]
            tests[key] = vision.read(f"{name}-{kind}-{severity}", images, 1)
    return Pack(vision.read(f"{name}-train", to_learn, 2), vision.read(f"{name}-views", views, 1), tests)


def drawn_images(images: Any, count: int, side: int) -> Iterator[Sample]:
    """So many images of a part of a pack, in an order of their own, resized to a side."""
    for place in np.random.default_rng(0).permutation(len(images))[:count]:
        sample = images[int(place)]
        yield replace(sample, image=resized(sample.image, side))


def _changed(sample: Sample, key: str, image: Any) -> Sample:
    return replace(sample, id=f"{sample.id} {key}", image=image)


class KeptReader:
    """Stands in for a learner's frozen reader: gives what was read of samples before, by their ids."""

    def __init__(self, readings: Sequence[Reading]) -> None:
        self._rows = {
            sample.id: (reading.features[row].mean(0), reading.tokens[row])
            for reading in readings
            for row, sample in enumerate(reading.samples)
        }

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        return torch.stack([self._rows[sample.id][0] for sample in samples])

    def read(self, samples: Sequence[Sample], cut: int) -> tuple[Tensor, list[Tensor]]:  # noqa: ARG002
        tokens = torch.stack([self._rows[sample.id][1] for sample in samples]).float()  # [B, V, T, d]
        return self(samples), list(tokens.unbind(1))
