"""Measures what the number of views of an image gains, while learning and when predicting.

    python benchmarks/views.py [--packs office_caltech10,...] [--train 1500] [--test 800] [--cache FOLDER]

A ridge head learns the mean of the features of V views of each training image of a development pack
(STREAMCL_DEV_DATA names their folder; ViT-S by pip, its first 11 blocks, 70 pixels), and predicts test images
by the mean of P of their views, with those of `tta_views`. Printed is the accuracy in per cent, the mean over
three random halves of the images and its standard error, one line for each V and P. The cost is that of as
many forward passes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from machine import machine
from stability import BACKBONE, DATA
from torch import Tensor

from streamcl.config.load import config_from_dict
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.heads.ridge import RidgeHead
from streamcl.learners.block_features import (
    concat_block_tokens,
    concat_width,
    evenly_spaced_blocks,
    tta_views,
)
from streamcl.learners.ridge_options import RidgeOptions
from streamcl.nn.backbone import Backbone
from streamcl.nn.device import Compute
from streams.datasets.npz import npz

PACKS = ("office_caltech10", "grocery81", "emoji_dev", "cifar100_dev")
COUNTS = (1, 2, 4)
SEEDS = 3


def main() -> None:
    """Print a table for each pack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packs", default=",".join(PACKS))
    parser.add_argument("--train", type=int, default=1500)
    parser.add_argument("--test", type=int, default=800)
    parser.add_argument("--cache", type=Path, help="folder for features, which are read from it another time")
    options = parser.parse_args()
    config = config_from_dict({"source": "x", "backbone": BACKBONE})
    compute = build_compute(config)
    backbone = build_vit(config, compute)
    print(json.dumps(machine(compute)))
    print("| pack | views learned | views predicted | accuracy |\n|---|---|---|---|")
    for pack in options.packs.split(","):
        train, test = (features(backbone, compute, pack, part, options) for part in (0, 1))
        for learned in COUNTS:
            for predicted in COUNTS:
                means = mean_of_views(train, learned), mean_of_views(test, predicted)
                shares = [accuracy_of_halves(*means, seed=seed) for seed in range(SEEDS)]
                error = np.std(shares, ddof=1) / SEEDS**0.5
                row = f"{100 * np.mean(shares):.1f} ± {100 * error:.1f}"
                print(f"| {pack} | {learned} | {predicted} | {row} |", flush=True)


def features(
    backbone: Backbone, compute: Compute, pack: str, part: int, options: argparse.Namespace
) -> tuple[Tensor, Tensor]:
    """Return features [N, 4, D] of the training (0) or test (1) images of a pack, and their classes [N]."""
    limit = 2 * options.test if part else 2 * options.train
    kept = None if options.cache is None else options.cache / f"{pack}-{part}-{limit}.npz"
    if kept is not None and kept.exists():
        with np.load(kept) as archive:
            return torch.from_numpy(archive["features"]), torch.from_numpy(archive["targets"])
    dataset = npz(DATA / f"{pack}.npz")[part]
    places = np.random.default_rng(part).permutation(len(dataset))[:limit]
    rows, labels, blocks = [], [], evenly_spaced_blocks(backbone.depth)
    for start in range(0, len(places), 16):
        samples = [dataset[int(place)] for place in places[start : start + 16]]
        with torch.no_grad(), compute.autocast():
            tokens = backbone.stem(
                torch.cat(tta_views(backbone.prepare([each.image for each in samples]), 4))
            )
            found = concat_block_tokens(backbone, backbone.run(tokens, 0, blocks[-1] + 1), blocks)
        rows.append(found.view(4, len(samples), -1).transpose(0, 1))
        labels += [str(each.label) for each in samples]
    assert rows[0].shape[-1] == concat_width(backbone, blocks)
    names = sorted({str(label) for label in dataset_labels(pack)})
    targets = torch.tensor([names.index(label) for label in labels])
    result = torch.cat(rows), targets
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, features=result[0].numpy(), targets=targets.numpy())
    return result


def dataset_labels(pack: str) -> list[str]:
    """Return the classes of a pack."""
    with np.load(DATA / f"{pack}.npz", allow_pickle=False) as archive:
        return list(json.loads(str(archive["meta"]))["classes"])


def mean_of_views(part: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Return the mean features [N, D] of the first views, and the classes [N].

    Args:
        part: features [N, 4, D] and classes [N].
        count: of the views.
    """
    return part[0][:, :count].mean(1), part[1]


def accuracy_of_halves(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, seed: int) -> float:
    """Return the share of half of the test images that a head predicts right after half of the training ones.

    Args:
        train: features [N, D] and classes [N].
        test: features [M, D] and classes [M].
        seed: of the halves.
    """
    generator = torch.Generator().manual_seed(seed)
    some, others = (
        torch.randperm(len(part[1]), generator=generator)[: len(part[1]) // 2] for part in (train, test)
    )
    options = RidgeOptions().model_dump(include={"trace_ridge", "variance_ridge", "gcv_margin"})
    head = RidgeHead(train[0].shape[-1], **options)
    head.grow(int(torch.cat([train[1], test[1]]).max()) + 1)
    head.update(train[0][some], train[1][some])
    scores = head.scores_refit(test[0][others])
    return float((scores.argmax(1) == test[1][others]).double().mean())


if __name__ == "__main__":
    main()
