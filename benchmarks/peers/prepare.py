"""Writes the folder that every peer reads: images in the order of a stream, and a frozen ViT's weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors.torch import save_file
from work import IMAGES, OPTIONS, WEIGHTS

from streamcl.config.load import config_from_dict
from streamcl.events import Batch, Sample
from streamcl.factory.backbone import build_compute, build_vit
from streams.build import named_source

PARTS = 4
"""Parts of the stream of an .npz file; the demonstration's digits have as many."""
TESTED = 300
"""Held-out images at most: enough for a percent or two, and no more than a few seconds of a peer's time."""


def prepare(folder: Path, options: dict[str, Any], images: int, pack: Path | None, weights: str) -> None:
    """Write images, weights and options.

    Args:
        folder: is made where it is missing.
        options: backbone, depth, size, batch, rate, threads, seed; see `work.Work`.
        images: the length of the stream.
        pack: an .npz as `streams.datasets.npz` reads it, whose classes come in four parts; None for the
            demonstration's digits, in which new classes and a new domain arrive.
        weights: as in a configuration's `backbone.weights`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train, test = _samples(images, pack, options["seed"])
    numbers: dict[str | None, int] = {}
    for sample in train:  # classes are numbered as they appear: deep-river's outputs would shift otherwise
        numbers.setdefault(sample.label, len(numbers))
    test = _spread([sample for sample in test if sample.label in numbers], TESTED)
    np.savez(
        folder / IMAGES,
        x=np.stack([_resized(sample, options["size"]) for sample in (*train, *test)]),
        y=np.array([numbers[sample.label] for sample in (*train, *test)]),
        split=np.repeat([0, 1], [len(train), len(test)]),
    )
    _write_weights(folder / WEIGHTS, options, weights)
    (folder / OPTIONS).write_text(json.dumps(options, indent=1) + "\n", encoding="utf-8")


def _samples(images: int, pack: Path | None, seed: int) -> tuple[list[Sample], list[Sample]]:
    if pack is None:
        source = named_source("demo_digits", {"length": -(-images // PARTS)}, seed=seed)
    else:
        source = named_source("npz", {"path": str(pack)}, ("disjoint", {"parts": PARTS}), seed=seed)
    stream: Iterable[Sample] = (
        sample for event in source if isinstance(event, Batch) for sample in event.samples
    )
    return list(islice(stream, images)), [sample for part in source.info.holdout for sample in part.samples]


def _spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Return at most so many, evenly spread."""
    return [samples[int(at)] for at in np.linspace(0, len(samples) - 1, min(most, len(samples)))]


def _resized(sample: Sample, size: int) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.fromarray(sample.image).resize((size, size), Image.Resampling.BICUBIC))


def _write_weights(path: Path, options: dict[str, Any], weights: str) -> None:
    backbone = {"name": options["backbone"], "image_size": options["size"], "depth": options["depth"]}
    config = config_from_dict(
        {"source": "demo_digits", "backbone": {**backbone, "weights": weights}, "seed": options["seed"]}
    )
    state = build_vit(config, build_compute(config)).model.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)
