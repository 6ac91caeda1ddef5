"""Does a pruned backbone lie above the front of size and depth that `streamcl advise` offers?

    python benchmarks/pruned_prefix.py [--packs office_caltech10,grocery81] [--images 256] [--probe 64]
                                       [--neurons]

The front: a ViT-S at 42 to 84 pixels and depths of 4 to 11 blocks, all of them, with the default feature
blocks. Beside it, at 70 pixels and the same depths, prefixes of which parts were dropped before anything is
learned: neurons of the MLPs (of the least second moment of activation x column of the second
layer), heads (of the least second moment of what they add), whole blocks (of the least angle between what
goes in and what comes out). Where neurons or heads are dropped, the layer after them is fitted anew by ridge
regression, so that it gives what all of them gave on `--probe` training images, one block after the other.

Accuracy is the exact leave-one-out accuracy of the default ridge head on other training images. Costs are
the processor time of reading an image, alone and in a batch of 16, and the number of multiplications. The
table says how many points a prefix has over the best of the front that costs no more, with the standard error
of the paired difference: at its whole depth, then at the depth where that is largest.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from machine import machine
from pruning import CHUNK, Prefix, pruned, without_blocks
from torch import Tensor, nn

from streamcl.config.load import config_from_dict
from streamcl.events import Sample
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.heads.leave_one_out import leave_one_out_scores
from streamcl.learners.block_features import evenly_spaced_blocks
from streamcl.learners.ridge_options import RidgeOptions
from streams.datasets.npz import npz

DATA = Path(os.environ.get("STREAMCL_DEV_DATA", "../shared/data"))
BACKBONE = {"name": "vit_small_patch14_dinov2", "weights": "fetch:vit-s-focus", "depth": 11}
SIZES, PRUNED_SIZES = (42, 56, 70, 84), (70,)
MIN_DEPTH = 4
TOGETHER, ROUNDS = 16, 5
COSTS = {
    "ms": "milliseconds of processor time, an image alone",
    "ms in batches": f"milliseconds of processor time, {TOGETHER} images at a time",
    "M": "millions of multiplications",
}


@dataclass(frozen=True)
class Point:
    """A prefix up to some depth at some size.

    correct: bool [n], which images are predicted correctly, each left out. costs: in the order of COSTS.
    """

    name: str
    size: int
    depth: int
    correct: npt.NDArray[np.bool_]
    costs: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


def milliseconds(prefix: Prefix, pixels: Tensor, depth: int) -> float:
    """The processor time of reading an image among those of pixels [B, 3, S, S], the least of some."""
    blocks, found = evenly_spaced_blocks(depth), []
    for _ in range(ROUNDS * (4 if len(pixels) == 1 else 1)):
        began = time.thread_time()
        prefix.read(pixels, blocks)
        found.append(time.thread_time() - began)
    return 1e3 * min(found[1:]) / len(pixels)


def multiplications(prefix: Prefix, size: int, depth: int) -> float:
    """Millions of multiplications of an image: linear layers and attention of the blocks, and the stem."""
    model: Any = prefix.backbone.model
    patches = (size // model.patch_embed.patch_size[0]) ** 2
    tokens, total = patches + 1, patches * model.patch_embed.proj.weight.numel()
    blocks: list[Any] = prefix.blocks[:depth]
    for block in blocks:
        weights = sum(each.weight.numel() for each in block.modules() if isinstance(each, nn.Linear))
        total += tokens * weights + 2 * block.attn.num_heads * block.attn.head_dim * tokens**2
    return float(total) / 1e6


def points(prefix: Prefix, size: int, pixels: Tensor, targets: Tensor) -> Iterator[Point]:
    """The prefix up to every depth; times of depths in between lie on a line, as blocks are alike."""
    depth = len(prefix.blocks)
    every = torch.cat([prefix.read(chunk, range(depth)) for chunk in pixels.split(CHUNK)])
    parts = every.unflatten(1, (depth, -1))  # [n, depth, features of a block]
    ends = [[milliseconds(prefix, pixels[:count], d) for d in (MIN_DEPTH, depth)] for count in (1, TOGETHER)]
    options = RidgeOptions().model_dump(include={"trace_ridge", "variance_ridge", "gcv_margin"})
    for blocks in range(MIN_DEPTH, depth + 1):
        rows = parts[:, evenly_spaced_blocks(blocks)].flatten(1)
        scores = leave_one_out_scores(rows, targets, **options)
        share = (blocks - MIN_DEPTH) / (depth - MIN_DEPTH)
        times = [least + share * (most - least) for least, most in ends]
        correct = np.asarray((scores.argmax(1) == targets).numpy(), np.bool_)
        costs = (*times, multiplications(prefix, size, blocks))
        yield Point(prefix.name, size, blocks, correct, costs)


def over_front(point: Point, front: Sequence[Point], cost: int) -> tuple[float, float]:
    """Points of accuracy over the best of the front that costs no more, and their standard error."""
    within = [each for each in front if each.costs[cost] <= point.costs[cost]]
    best = max(within or front[:1], key=lambda each: each.accuracy)
    difference = point.correct.astype(float) - best.correct.astype(float)
    return 100 * float(difference.mean()), 100 * float(difference.std()) / len(difference) ** 0.5


def drawn(name: str, probe: int, images: int) -> tuple[list[Sample], list[Sample], Tensor]:
    """Training images to prune by, others to predict, and the classes int64 [n] of these."""
    train = npz(DATA / f"{name}.npz")[0]
    order = [int(place) for place in np.random.default_rng(0).permutation(len(train))]
    to_prune = [train[place] for place in order[:probe]]
    rest = [train[place] for place in order[probe : probe + images]]
    names, counts = np.unique([str(sample.label) for sample in rest], return_counts=True)
    usable = [sample for sample in rest if str(sample.label) in names[counts >= 3]]
    labels = [str(sample.label) for sample in usable]
    return to_prune, usable, torch.from_numpy(np.unique(labels, return_inverse=True)[1])


def variants(whole: Prefix, pixels: Tensor, neurons_alone: bool) -> Iterator[Prefix]:
    """The prefixes that are tried."""
    for share in (0.25, 0.5):
        yield pruned(whole, pixels, share, 0)
    if neurons_alone:
        return
    yield pruned(whole, pixels, 0.0, 2)
    for count in (1, 2, 4):
        yield without_blocks(whole, pixels, count)


def measure(name: str, arguments: argparse.Namespace) -> None:
    """Print the front of a pack, and the rows of the prefixes."""
    to_prune, images, targets = drawn(name, arguments.probe, arguments.images)
    front: list[Point] = []
    others: list[list[Point]] = []
    for size in SIZES:
        config = config_from_dict({"source": "digits", "backbone": {**BACKBONE, "image_size": size}})
        backbone = build_vit(config, build_compute(config))
        whole = Prefix("whole", backbone, backbone.blocks)
        pixels = backbone.prepare([sample.image for sample in images])
        front += points(whole, size, pixels, targets)
        if size in PRUNED_SIZES:
            probe = backbone.prepare([sample.image for sample in to_prune])
            others += [
                [*points(each, size, pixels, targets)] for each in variants(whole, probe, arguments.neurons)
            ]
    for cost, (unit, how) in enumerate(COSTS.items()):
        best: list[Point] = []
        for point in sorted(front, key=lambda each: (each.costs[cost], -each.accuracy)):
            if not best or point.accuracy > best[-1].accuracy:
                best.append(point)
        members = [
            f"{each.size} px {each.depth}: {100 * each.accuracy:.1f} % {each.costs[cost]:.1f}"
            for each in best
        ]
        print(f"\n{name}, {len(targets)} images, {how}; the front: {', '.join(members)}\n")
        print(f"| prefix | px |{2 * f' depth | {unit} | accuracy | over the front |'}")
        print(10 * "|---" + "|")
        for row in others:
            ahead = [over_front(point, front, cost) for point in row]
            at = max(range(len(row)), key=lambda place: ahead[place][0])
            cells = [f"{row[0].name} | {row[0].size}"]
            for place in (len(row) - 1, at):
                gain, error = ahead[place]
                figures = f"{row[place].costs[cost]:.1f} | {100 * row[place].accuracy:.1f}"
                cells.append(f"{row[place].depth} | {figures} | {gain:+.1f} ± {error:.1f}")
            print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--packs", default="office_caltech10,grocery81")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--probe", type=int, default=64)
    parser.add_argument("--neurons", action="store_true", help="drop neurons alone")
    arguments = parser.parse_args()
    print(json.dumps(machine(build_compute(config_from_dict({"source": "digits", "backbone": BACKBONE})))))
    with torch.no_grad():
        for name in arguments.packs.split(","):
            measure(name, arguments)
    print(f"\n{time.process_time():.0f} s of processor time")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
