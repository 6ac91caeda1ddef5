"""Does the choice of `streamcl advise` hold? Its scores beside the accuracy of heads on test images.

    python benchmarks/advise.py [--packs office_caltech10,grocery81,digits] [--seeds 3] [--gradients]
                                [--cache DIR]

18 candidates a pack: 42, 70 and 98 pixels x six depths of a ViT-S, with the default feature blocks. The truth
is the accuracy on at most 1,000 test images of the default ridge head that has learned 1,200 training images.
Each score is of some of the training images, drawn anew for each seed: the exact leave-one-out accuracy, and
others that rank candidates without a classifier. Printed are Kendall's tau with the truth, and the regret:
points of accuracy by which the best candidate surpasses the one of the highest score. `choice` is what is
recommended, the cheapest of those that tie with the best. Packs are read from STREAMCL_DEV_DATA, else
../shared/data; `digits` comes with pip.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor

from streamcl.advice.block_tokens import BackboneSizes, BlockTokens
from streamcl.advice.candidates import depths
from streamcl.advice.front import Budget, Correct, Costs, recommend, ties_with_best
from streamcl.advice.proxies import GRADIENT_SAMPLES, trainability
from streamcl.advice.transferability import h_score, log_evidence
from streamcl.config.load import config_from_dict
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.heads.leave_one_out import leave_one_out_scores
from streamcl.heads.ridge import RidgeHead
from streamcl.learners.block_features import evenly_spaced_blocks
from streamcl.learners.ridge_options import RidgeOptions
from streams.datasets.digits import digits
from streams.datasets.npz import npz

DATA = Path(os.environ.get("STREAMCL_DEV_DATA", "../shared/data"))
BACKBONE = {"name": "vit_small_patch14_dinov2", "weights": "fetch:vit-s-focus", "depth": 11}
SIZES, DEPTHS = (42, 70, 98), depths(11)
IMAGES = {"train": 1200, "test": 1000}
RIDGE: dict[str, Any] = {
    "variance_ridge": RidgeOptions().variance_ridge,
    "gcv_margin": RidgeOptions().gcv_margin,
}
PROBES = (512, 256, 128)

Place: TypeAlias = tuple[int, int]
"""Image size and depth of a candidate."""


@dataclass(frozen=True)
class Pack:
    """Features of all blocks [N, D] by image size, and classes int64 [N], to learn and to test on."""

    x: Mapping[int, Tensor]
    y: Tensor
    x_test: Mapping[int, Tensor]
    y_test: Tensor
    sizes: Mapping[int, BackboneSizes]

    def of(self, x: Mapping[int, Tensor], place: Place) -> Tensor:
        """The features of a candidate."""
        size, depth = place
        ends = list(pairwise([0, *accumulate(self.sizes[size].features)]))
        parts = [x[size][:, slice(*ends[block])] for block in evenly_spaced_blocks(depth)]
        return torch.cat(parts, dim=1)

    def truth(self, place: Place) -> float:
        """The accuracy on test images of the head that has learned all training images."""
        rows = self.of(self.x, place)
        head = RidgeHead(rows.shape[1], **RIDGE)
        head.grow(int(self.y.max()) + 1)
        head.update(rows, self.y)
        return float(
            (head.scores_refit(self.of(self.x_test, place)).argmax(1) == self.y_test).double().mean()
        )

    def work(self, place: Place) -> tuple[int, int]:
        """Parameters and multiplications of a candidate."""
        size, (_, depth) = self.sizes[place[0]], place
        parameters = sum(size.parameters[: depth + 1])
        attention = 2 * depth * size.tokens**2 * size.width
        return parameters, size.tokens * parameters + attention


def read(name: str, cache: Path | None) -> Pack:
    """Features of a pack, from the cache where they are there."""
    arrays: dict[str, Any] = {}
    sizes: dict[int, BackboneSizes] = {}
    for side in SIZES:
        path = None if cache is None else cache / f"{name}-{side}.npz"
        config = config_from_dict({"source": "digits", "backbone": {**BACKBONE, "image_size": side}})
        compute = build_compute(config)
        backbone = build_vit(config, compute)
        sizes[side] = BackboneSizes.of(backbone)
        if path is not None and path.exists():
            found = dict(np.load(path))
        else:
            found = features(name, functools.partial(BlockTokens, backbone, compute, 1))
            if path is not None:
                np.savez(path, **found)
        arrays |= {f"{part}-{side}": found[f"x_{part}"] for part in IMAGES} | found
    names = np.unique(np.concatenate([arrays[f"y_{part}"] for part in IMAGES]))
    y, y_test = (torch.from_numpy(np.searchsorted(names, arrays[f"y_{part}"])) for part in IMAGES)
    x, x_test = ({side: torch.from_numpy(arrays[f"{part}-{side}"]) for side in SIZES} for part in IMAGES)
    return Pack(x, y, x_test, y_test, sizes)


def features(name: str, tokens: Any) -> dict[str, Any]:
    """Features and classes of a pack's images, at most `IMAGES` of each part, in an order of their own."""
    parts = digits() if name == "digits" else npz(DATA / f"{name}.npz")
    found: dict[str, Any] = {}
    for (part, limit), images in zip(IMAGES.items(), parts, strict=True):
        chosen = np.random.default_rng(0).permutation(len(images))[:limit]
        collected = tokens()
        for chunk in np.array_split(chosen, max(1, len(chosen) // 64)):
            collected.read([images[int(i)] for i in chunk])
        found[f"x_{part}"] = collected.of_blocks(range(collected.sizes.depth)).numpy()
        found[f"y_{part}"] = np.array([str(images[int(i)].label) for i in chosen])
    return found


def gradients(name: str) -> dict[str, dict[Place, float]]:
    """The proxies from gradients of each candidate, on the first training images that are drawn."""
    train = (digits() if name == "digits" else npz(DATA / f"{name}.npz"))[0]
    chosen = np.random.default_rng(0).permutation(len(train))[:GRADIENT_SAMPLES]
    samples = [train[int(place)] for place in chosen]
    labels = [str(sample.label) for sample in samples]
    targets = torch.from_numpy(np.unique(labels, return_inverse=True)[1])
    found: dict[str, dict[Place, float]] = defaultdict(dict)
    for side in SIZES:
        config = config_from_dict({"source": "digits", "backbone": {**BACKBONE, "image_size": side}})
        backbone = build_vit(config, build_compute(config))
        for depth in DEPTHS:
            for proxy, value in trainability(backbone, depth, samples, targets)._asdict().items():
                found[f"{proxy}, {GRADIENT_SAMPLES}"][side, depth] = value
    return found


def drawn(y: Tensor, count: int, seed: int) -> Tensor:
    """Places of a probe: three of each class that has them, and others at random."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    first = [order[y[order] == label][:3] for label in y.unique()]
    kept = torch.cat([places for places in first if len(places) == 3])
    possible = torch.isin(y[order], y[kept]) & ~torch.isin(order, kept)
    return torch.cat([kept, order[possible][: max(0, count - len(kept))]])


def left_out(rows: Tensor, y: Tensor) -> tuple[Correct, float]:
    """Which samples are predicted correctly, each left out, and the mean square of what scores miss."""
    column = torch.unique(y, return_inverse=True)[1]
    scores = leave_one_out_scores(rows, column, **RIDGE)
    wanted = torch.nn.functional.one_hot(column).double()
    return np.asarray(scores.argmax(dim=1) == column), float((scores - wanted).square().mean())


def nearest_mean(rows: Tensor, y: Tensor) -> float:
    """The accuracy of the nearest class mean, each sample left out of its own."""
    column = torch.unique(y, return_inverse=True)[1]
    one_hot = torch.nn.functional.one_hot(column).double()
    x = rows.double()
    totals, counts = one_hot.T @ x, one_hot.sum(dim=0)
    distances = torch.cdist(x, totals / counts[:, None])
    own = (x - (totals[column] - x) / (counts[column] - 1)[:, None]).norm(dim=1)
    distances[torch.arange(len(x)), column] = own
    return float((distances.argmin(dim=1) == column).double().mean())


def scores_of(pack: Pack, seed: int) -> tuple[dict[str, dict[Place, float]], Place]:
    """Each score of each candidate for one draw of the probe, and what is recommended on the largest."""
    found: dict[str, dict[Place, float]] = defaultdict(dict)
    correct: dict[Place, Correct] = {}
    for place in [(size, depth) for size in SIZES for depth in DEPTHS]:
        rows = pack.of(pack.x, place)
        for count in PROBES:
            probe = drawn(pack.y, count, seed)
            right, missed = left_out(rows[probe], pack.y[probe])
            found[f"leave-one-out accuracy, {count}"][place] = float(right.mean())
            if count == PROBES[0]:
                correct[place] = right
                found[f"leave-one-out squared error, {count}"][place] = -missed
        probe = drawn(pack.y, 256, seed)
        column = torch.unique(pack.y[probe], return_inverse=True)[1]
        found["LogME, 256"][place] = log_evidence(rows[probe], column)
        found["H-score, 256"][place] = h_score(rows[probe], column)
        found["nearest mean, 256"][place] = nearest_mean(rows[probe], pack.y[probe])
        found["#Params"][place], found["#FLOPs"][place] = pack.work(place)
    places = list(correct)
    costs = [Costs(float(correct[place].mean()), pack.work(place)[1], 0.0) for place in places]
    chosen = recommend(costs, ties_with_best(costs, [correct[place] for place in places], Budget()))
    assert chosen is not None
    return found, places[chosen]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--packs", default="office_caltech10,grocery81,digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gradients", action="store_true", help="ZiCo, SNIP and the gradient's norm as well")
    parser.add_argument("--cache", type=Path, help="folder in which features are kept")
    arguments = parser.parse_args()
    taus: dict[str, list[list[float]]] = defaultdict(list)
    regrets: dict[str, list[list[float]]] = defaultdict(list)
    for name in arguments.packs.split(","):
        pack = read(name, arguments.cache)
        slopes = gradients(name) if arguments.gradients else {}
        truth = {(size, depth): pack.truth((size, depth)) for size in SIZES for depth in DEPTHS}
        best = max(truth.values())
        print(f"{name}: best {max(truth, key=truth.__getitem__)} {best:.3f}, of all blocks at each size:")
        print("   ", {size: round(truth[size, DEPTHS[-1]], 3) for size in SIZES}, flush=True)
        tau, regret = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
        for seed in range(arguments.seeds):
            found, choice = scores_of(pack, seed)
            found |= slopes
            for score, values in found.items():
                places = list(truth)
                tau[score].append(kendalltau([values[at] for at in places], [truth[at] for at in places])[0])
                regret[score].append(best - truth[max(values, key=values.__getitem__)])
            regret["choice"].append(best - truth[choice])
            share = pack.work(choice)[1] / max(pack.work(place)[1] for place in truth)
            print(f"    choice {choice}, {truth[choice]:.3f}, {share:.2f} of the largest's work", flush=True)
        for score in regret:
            taus[score].append(tau.get(score, [float("nan")]))
            regrets[score].append(regret[score])
    print("| score | tau | regret, points | worst regret |\n|---|---:|---:|---:|")
    for score in sorted(regrets, key=lambda each: -float(np.mean(taus[each]))):
        figures = np.mean(taus[score]), 100 * np.mean(regrets[score]), 100 * np.max(regrets[score])
        print(f"| {score} | {figures[0]:.2f} | {figures[1]:.1f} | {figures[2]:.1f} |")


if __name__ == "__main__":
    main()
