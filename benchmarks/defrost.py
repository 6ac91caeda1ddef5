"""Where should adapters begin? A rule that needs no training, beside runs that begin at different blocks.

    python benchmarks/defrost.py [--packs office_caltech10,grocery81] [--blocks 0,3,6,9] [--seeds 0]
                                 [--size 56]

Intelligent defrosting (arXiv 2303.01429) finds that the best number of frozen layers depends on the data, and
is often not all but the last. The rule that is tried here: adapters begin at the block after which the exact
leave-one-out accuracy of a ridge head, by the depth of its features, rises by less than a point a block. The
truth is the accuracy on test images of `ridge_lora` with `lora.first_block` at each of the given blocks,
after one pass over a pack (STREAMCL_DEV_DATA names their folder), its domains or ten parts of its classes one
after the other. Printed are the accuracy left out by depth, the block that the rule names, and the accuracy
on test images by first block.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from streamcl.advice.block_tokens import BlockTokens
from streamcl.config.load import config_from_dict
from streamcl.events import Sample
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.heads.leave_one_out import leave_one_out_scores
from streamcl.learners.block_features import evenly_spaced_blocks
from streamcl.learners.ridge_options import RidgeOptions
from streamcl.runs.open import open_run
from streams.datasets.npz import npz

DATA = Path(os.environ.get("STREAMCL_DEV_DATA", "../shared/data"))
BACKBONE = {"name": "vit_small_patch14_dinov2", "weights": "fetch:vit-s-focus", "depth": 11}
PROBE, POINT = 512, 0.01
SCENARIOS = {"office_caltech10": {"name": "domain_incremental", "seed": 0}}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--packs", default="office_caltech10,grocery81")
    parser.add_argument("--blocks", default="0,3,6,9")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--size", type=int, default=56)
    arguments = parser.parse_args()
    blocks, seeds = ([int(each) for each in text.split(",")] for text in (arguments.blocks, arguments.seeds))
    for pack in arguments.packs.split(","):
        train, _ = npz(DATA / f"{pack}.npz")
        probe = np.random.default_rng(0).permutation(len(train))[:PROBE]
        risen = left_out([train[int(place)] for place in probe], arguments.size)
        print(pack, "left out, by depth:", " ".join(f"{100 * each:.1f}" for each in risen))
        print(f"the rule: block {named(risen)}", flush=True)
        for block in blocks:
            found = [accuracy(pack, block, seed, arguments.size) for seed in seeds]
            print(f"first_block {block}: {mean(found):.1f}", [round(each, 1) for each in found], flush=True)


def left_out(samples: Sequence[Sample], size: int) -> list[float]:
    """Return the accuracy of the default head on samples left out, by the depth of its features, from 1."""
    config = config_from_dict({"source": "digits", "backbone": {**BACKBONE, "image_size": size}})
    compute = build_compute(config)
    tokens = BlockTokens(build_vit(config, compute), compute, 1)
    for start in range(0, len(samples), 64):
        tokens.read(samples[start : start + 64])
    labels = [str(sample.label) for sample in samples]
    y = torch.from_numpy(np.unique(labels, return_inverse=True)[1])
    ridge: dict[str, Any] = RidgeOptions().model_dump(include={"variance_ridge", "gcv_margin"})
    found = []
    for depth in range(1, tokens.sizes.depth + 1):
        rows = tokens.of_blocks(evenly_spaced_blocks(depth))
        found.append(float((leave_one_out_scores(rows, y, **ridge).argmax(1) == y).double().mean()))
    return found


def named(risen: Sequence[float]) -> int:
    """Return the first block after which no deeper features gain a point for each further block.

    Args:
        risen: accuracy by depth, from 1; the features of depth d end with block d - 1.
    """
    for depth, accuracy_there in enumerate(risen, 1):
        gains = [(later - accuracy_there) / more for more, later in enumerate(risen[depth:], 1)]
        if all(gain < POINT for gain in gains):
            return min(depth, len(risen) - 1)
    return len(risen) - 1


def accuracy(pack: str, block: int, seed: int, size: int) -> float:
    """Return the accuracy in per cent on test images after one pass, with adapters from a block on."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "run_dir": f"{folder}/run",
            "source": {"name": "npz", "args": {"path": str(DATA / f"{pack}.npz")}},
            "scenario": SCENARIOS.get(pack, {"name": "disjoint", "parts": 10, "seed": 0}),
            "seed": seed,
            "batch": 64,
            "backbone": {**BACKBONE, "image_size": size},
            "learner": {"name": "ridge_lora", "lora": {"first_block": block}},
            "evaluate": {"every_samples": None},
            "report": {"samples": 0},
        }
        with open_run(settings) as run:
            for _ in run:
                pass
            return 100 * float(run.summary()["holdout"]["A_Last"])


if __name__ == "__main__":
    main()
