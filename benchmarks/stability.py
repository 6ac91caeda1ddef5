"""Are stability and novelty what they say? Measured on real images, with the default ridge head.

    python benchmarks/stability.py [--packs office_caltech10,...] [--refits 40] [--seeds 3] [--cache DIR]

Stability: the head is learned anew from as many images drawn with replacement, `--refits` times. By bins of
the predicted probability that another class would be named, the last table says how often refitted heads do.
Novelty: a head learns half of the classes. The first table gives the area under the ROC curve with which
images of the others are told from new images of those it learned, and how many of each are called unknown by
`answer: {unknown: 0.95}`, with the limit set on half of the known images, as by held-out ones. In the second
table the head learns all classes, and the others are images of another pack. Packs are read from
STREAMCL_DEV_DATA, else ../shared/data; `digits` comes with pip.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamcl.capabilities.prediction_interfaces import AssessedScores
from streamcl.config.load import config_from_dict
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.factory.parts import build_learner
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.stability import flip_probability
from streamcl.learners.ridge import RidgeLearner
from streamcl.learners.ridge_options import RidgeOptions
from streams.datasets.digits import digits
from streams.datasets.npz import npz

DATA = Path(os.environ.get("STREAMCL_DEV_DATA", "../shared/data"))
BACKBONE = {"name": "vit_small_patch14_dinov2", "weights": "fetch:vit-s-focus", "image_size": 70, "depth": 11}
EDGES = (0.0, 0.01, 0.05, 0.15, 0.35, 1.0)
MIN_IN_BIN = 40
IMAGES = {"train": 2000, "test": 1000}
SHARE = 0.95


@dataclass(frozen=True)
class Split:
    """Features [N, D] and classes int64 [N] to learn and to test on; C classes."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int

    def of_classes(self, chosen: Sequence[int]) -> Split:
        """Return the split with these classes to learn, and all to test on: -1 is any other class."""
        column = torch.full((self.classes,), -1)
        column[list(chosen)] = torch.arange(len(chosen))
        kept = column[self.y] >= 0
        return Split(self.x[kept], column[self.y[kept]], self.x_test, column[self.y_test], len(chosen))

    def head(self, rows: Tensor | None = None) -> RidgeHead:
        """Return the default ridge head that has learned the split, or some rows of it."""
        defaults = RidgeOptions()
        head = RidgeHead(
            self.x.shape[1], variance_ridge=defaults.variance_ridge, gcv_margin=defaults.gcv_margin
        )
        head.grow(self.classes)
        head.update(*((self.x, self.y) if rows is None else (self.x[rows], self.y[rows])))
        return head


def read(packs: Sequence[str], cache: Path | None) -> dict[str, Split]:
    """Features of each pack, from the cache where they are there."""
    config = config_from_dict(
        {"source": "digits", "backbone": BACKBONE, "learner": "ridge"}
    )  # its source is unused
    found: dict[str, Split] = {}
    learner: Any = None
    for pack in packs:
        path = None if cache is None else cache / f"{pack}.npz"
        if path is not None and path.exists():
            arrays = dict(np.load(path))
        else:
            if learner is None:
                compute = build_compute(config)
                learner = build_learner(config, build_vit(config, compute), compute)
            arrays = features(learner, pack)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                np.savez(path, **arrays)
        names = np.unique(np.concatenate([arrays["y_train"], arrays["y_test"]]))
        y, y_test = (torch.from_numpy(np.searchsorted(names, arrays[f"y_{part}"])) for part in IMAGES)
        x, x_test = (torch.from_numpy(arrays[f"x_{part}"]) for part in IMAGES)
        found[pack] = Split(x, y, x_test, y_test, len(names))
    return found


def features(learner: RidgeLearner[Any], pack: str) -> dict[str, Any]:
    """Features and classes of a pack's images, at most `IMAGES` of each part, in an order of their own."""
    parts = digits() if pack == "digits" else npz(DATA / f"{pack}.npz")
    arrays: dict[str, Any] = {}
    for (name, limit), part in zip(IMAGES.items(), parts, strict=True):
        chosen = np.random.default_rng(0).permutation(len(part))[:limit]
        chunks = np.array_split(chosen, max(1, len(chosen) // 64))
        rows = [learner.features([part[int(i)] for i in chunk]).numpy() for chunk in chunks]
        arrays[f"x_{name}"] = np.concatenate(rows)
        arrays[f"y_{name}"] = np.array([str(part[int(i)].label) for i in chosen])
    return arrays


def changes(split: Split, refits: int, seed: int) -> tuple[Tensor, Tensor]:
    """The predicted probability of a change, [N], and the share of refitted heads that name another class."""
    head, generator = split.head(), torch.Generator().manual_seed(seed)
    scores = head.scores_refit(split.x_test)
    expected = flip_probability(scores, head.uncertainty(split.x_test).variance)
    other = torch.zeros(len(expected), dtype=torch.float64)
    for _ in range(refits):
        rows = torch.randint(len(split.x), (len(split.x),), generator=generator)
        other += split.head(rows).scores_refit(split.x_test).argmax(dim=1) != scores.argmax(dim=1)
    return expected, other / refits


def bins(expected: Tensor, found: Tensor) -> Iterator[tuple[float, float, int]]:
    """Mean expected, mean found and number of each bin of the expected probability."""
    for low, high in pairwise(EDGES):
        rows = (expected >= low) & (expected < high)
        if bool(rows.any()):
            yield float(expected[rows].mean()), float(found[rows].mean()), int(rows.sum())


def assessed(head: RidgeHead, x: Tensor) -> AssessedScores:
    """Scores of features [N, D], with what is said of them."""
    scores, (variance, novelty) = head.scores_refit(x), head.uncertainty(x)
    return AssessedScores(scores, flip_probability(scores, variance), novelty)


def detection(head: RidgeHead, known: Tensor, new: Tensor) -> list[float]:
    """Of four signs the area under the ROC curve, then the shares of known and of new ones called unknown.

    Args:
        head: has learned the classes of the known ones.
        known: features [N, D].
        new: features [M, D].
    """
    own, other = assessed(head, known), assessed(head, new)
    signs = [(-each.logits.amax(1), each.flips, each.novelty, each.unsupported) for each in (own, other)]
    areas = [area(*pair) for pair in zip(*signs, strict=True)]
    limit = own.unsupported[::2].quantile(SHARE, interpolation="higher")
    called = [float((each > limit).double().mean()) for each in (own.unsupported[1::2], other.unsupported)]
    return [*areas, *called]


def area(known: Tensor, new: Tensor) -> float:
    """The probability that a sign of a new image, of [M], exceeds a known one's, of [N]; ties count half."""
    ordered = known.sort().values
    below = torch.searchsorted(ordered, new) + torch.searchsorted(ordered, new, right=True)
    return float(below.double().mean()) / 2 / len(known)


def row(name: str, figures: Sequence[Sequence[float]]) -> str:
    """A row of the mean of several seeds' figures."""
    return f"| {name} | " + " | ".join(f"{value:.3f}" for value in np.mean(figures, axis=0)) + " |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--packs", default="office_caltech10,grocery81,digits")
    parser.add_argument("--refits", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="folder in which features are kept")
    arguments = parser.parse_args()
    splits = read(arguments.packs.split(","), arguments.cache)
    signs = (
        "| | score | stability | novelty | novelty / score | known, unknown | new, unknown |\n|---|"
        + "---:|" * 6
    )
    print(signs)
    for name, split in splits.items():
        found = []
        for seed in range(arguments.seeds):
            chosen = np.random.default_rng(seed).permutation(split.classes)[: split.classes // 2].tolist()
            half = split.of_classes(chosen)
            known = half.y_test >= 0
            found.append(detection(half.head(), half.x_test[known], half.x_test[~known]))
        print(row(name, found), flush=True)
    print(signs, "|---|---:|---:|---:|---:|---:|---:|", sep="\n")
    heads = {name: split.head() for name, split in splits.items()}
    for name, other in permutations(splits, 2):
        figures = detection(heads[name], splits[name].x_test, splits[other].x_test)
        print(row(f"{name}, new: {other}", [figures]), flush=True)
    print("| | expected / found (images) by bins | largest error | correlation |\n|---|---|---:|---:|")
    for name, split in splits.items():
        pairs = [changes(split, arguments.refits, seed) for seed in range(arguments.seeds)]
        expected, share = (torch.cat(each) for each in zip(*pairs, strict=True))
        table = list(bins(expected, share))
        worst = max(abs(a - b) for a, b, count in table if count >= MIN_IN_BIN)
        shown = ", ".join(f"{a:.3f} / {b:.3f} ({count})" for a, b, count in table)
        correlation = float(torch.corrcoef(torch.stack([expected, share]))[0, 1])
        print(f"| {name} | {shown} | {worst:.3f} | {correlation:.3f} |", flush=True)


if __name__ == "__main__":
    main()
