"""A gate that drops ranks of the adapters of `ridge_lora` while they are trained: what is there to gain?

    python benchmarks/rank_gate.py [--packs office_caltech10] [--train 300] [--warmup 96] [--size 56]
                                   [--cache FOLDER]

Adapters of rank 1, 4 (the default) and 8 are compared with ones of rank 8 whose ranks are gated. A gate s_j
on each rank, y += B diag(s) A x with a lasso on s (HALO, arXiv 2008.10183; differentiable sparsification,
arXiv 1910.03201), is a group lasso on the columns of B, since s_j goes into the length of the j-th column:
after each step of Adam every column of B is shortened by a share of the largest length that one step can add
to it, and is zero where it was shorter. Printed are the mean over three draws of the training images: the
accuracy on up to 400 test images, the processor time of learning all training images of which the first
`--warmup` train the adapters, and the ranks that are left, of 2 x rank in each adapted block.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corruption_reading import KeptReader, Reading, Vision, drawn_images
from machine import machine
from stability import DATA

from streamcl.config.load import config_from_dict
from streamcl.events import Batch
from streamcl.factory.parts import build_learner
from streamcl.nn.lora import LoRALinear
from streams.datasets.npz import npz

ARMS = {"1": (1, 0.0), "4": (4, 0.0), "8": (8, 0.0), "8, gate 0.5": (8, 0.5)}
"""Ranks, and the share of a step's largest length by which columns are shortened."""
DRAWS, BATCH = 3, 32


def shorten(layer: LoRALinear, length: float) -> None:
    """The proximal step of a group lasso on the columns of lora_B [2, o, r]."""
    with torch.no_grad():
        norms = layer.lora_B.norm(dim=1, keepdim=True)  # [2, 1, r]
        layer.lora_B.mul_((1 - length / norms.clamp(min=1e-12)).clamp(min=0))


def gated(branch: Any, rate: float, share: float) -> list[int]:
    """Put the proximal step after each step of a branch; returns where the ranks that are left are noted."""
    step, left = branch._step, [0]

    def step_and_shorten(*arguments: Any) -> bool:
        finite = bool(step(*arguments))
        for layer in branch.adapters.layers:
            if share:
                shorten(layer, share * rate * (layer.out_features // 3) ** 0.5)
        left[0] = sum(int((each.lora_B.norm(dim=1) > 0).sum()) for each in branch.adapters.layers)
        return finite

    branch._step = step_and_shorten
    return left


def run(vision: Vision, train: Reading, test: Reading, seed: int, arm: str, warmup: int) -> tuple[float, ...]:
    """Accuracy in per cent, seconds of learning, and the share of ranks that is left."""
    rank, share = ARMS[arm]
    options = {"name": "ridge_lora", "lora": {"rank": rank, "warmup_samples": warmup}}
    config: Any = config_from_dict({**vision.settings, "seed": seed, "learner": options})
    learner: Any = build_learner(config, vision.backbone, vision.compute)
    learner.exact.reader = KeptReader([train, test])
    left = gated(learner.adapted, config.learner.lora.learning_rate, share)
    began = time.process_time()
    for start in range(0, len(train.samples), BATCH):
        learner.learn(Batch(start, train.samples[start : start + BATCH]))
    seconds = time.process_time() - began
    names = [learner.classes[column] for column in learner.logits(test.samples).argmax(1).tolist()]
    right = [name == sample.label for name, sample in zip(names, test.samples, strict=True)]
    return 100 * float(np.mean(right)), seconds, left[0] / (2 * rank * len(learner.adapted.adapters.layers))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--packs", default="office_caltech10")
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--warmup", type=int, default=96)
    parser.add_argument("--size", type=int, default=56)
    parser.add_argument("--cache", type=Path, help="folder for features, which are read from it another time")
    options = parser.parse_args()
    vision = Vision(options.size, options.cache)
    print(json.dumps(machine(vision.compute)))
    print("| pack | rank | accuracy | over rank 4 | s of learning | ranks left |\n|---|---|---|---|---|---|")
    for name in options.packs.split(","):
        learned, tested = npz(DATA / f"{name}.npz")
        pool = vision.read(f"{name}-train", [*drawn_images(learned, 3 * options.train // 2, options.size)], 2)
        test = vision.read(f"{name}-clean", [*drawn_images(tested, 400, options.size)], 1)
        found: dict[str, list[tuple[float, ...]]] = {arm: [] for arm in ARMS}
        for seed in range(DRAWS):
            order = np.random.default_rng(seed).permutation(len(pool.samples))[: options.train]
            train = pool.of([int(place) for place in order])
            for arm in ARMS:
                found[arm].append(run(vision, train, test, seed, arm, options.warmup))
        base = np.array(found["4"])[:, 0]
        for arm, each in found.items():
            accuracies, seconds, left = np.array(each).T
            error = np.std(accuracies - base, ddof=1) / DRAWS**0.5
            gain = "" if arm == "4" else f"{np.mean(accuracies - base):+.1f} ± {error:.1f}"
            row = f"{np.mean(accuracies):.1f} | {gain} | {np.mean(seconds):.1f} | {np.mean(left):.2f}"
            print(f"| {name} | {arm} | {row} |", flush=True)
    print(f"{time.process_time():.0f} s of processor time")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
