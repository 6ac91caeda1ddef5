"""Accuracy on corrupted images of learners that learned clean ones, and with robust views beside them.

    python benchmarks/corruptions.py [--packs office_caltech10,...] [--learners ridge,ridge_lora]
                                     [--size 56] [--train 600] [--test 200] [--cache FOLDER]

Test images of development packs (STREAMCL_DEV_DATA names their folder) are corrupted in nine ways at two
severities (see `corruption_kinds`), at the size that the ViT-S reads. Learned are clean images, in one of the
ways of `WAYS`: the usual views alone, or with a robust view, as `robust_share` has it, in some share. Printed
are accuracies in per cent, the mean over three draws of the training images, and what each way gains over the
usual views, with its standard error over the draws: on clean images, on corruptions like those of robust
views (noise, blur, compression, pixels, brightness), and on others (fog, contrast). Adapters of `ridge_lora`
are trained on the first third of the images, and it is tested at the higher severity alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corruption_reading import SEVERITIES, TESTED, KeptReader, Pack, Reading, Vision, read_pack
from machine import machine
from torch import Tensor

from streamcl.config.load import config_from_dict
from streamcl.events import Batch
from streamcl.factory.parts import build_learner
from streamcl.heads.ridge import RidgeHead
from streamcl.heads.view_pair_head import ViewPairRidgeHead
from streamcl.learners.ridge_options import RidgeOptions

OTHERS = ("fog", "contrast")
DRAWS, BATCH = 3, 32


WAYS = (
    "two views",
    "second view robust",
    "third view plain, 1/10",
    "robust 1/20",
    "robust 1/10",
    "robust 1/3",
)
"""What a ridge head learns of an image: the mean of two views, the second one robust or not, and a share of a
further view, which is the image itself or a robust one."""


def head_of(way: str, clean: Tensor, robust: Tensor, targets: Tensor, classes: int) -> RidgeHead:
    """The default head that has learned images in a way.

    Args:
        way: one of WAYS.
        clean: features [N, 2, D], of both views.
        robust: [N, D], of the robust view.
        targets: int64 [N].
        classes: C.
    """
    options = RidgeOptions().model_dump(include={"trace_ridge", "variance_ridge", "gcv_margin"})
    features = clean.mean(1)
    if way in WAYS[:2]:
        head = RidgeHead(clean.shape[-1], **options)
        features = features if way == WAYS[0] else (clean[:, 0] + robust) / 2
    else:
        head = ViewPairRidgeHead(clean.shape[-1], robust_share=1 / int(way.rpartition("/")[2]), **options)
        view = robust if way.startswith("robust") else clean[:, 0]
        features = torch.cat([features, view], dim=1)
    head.grow(classes)
    head.update(features, targets)
    return head


def ridge_accuracies(pack: Pack, places: Sequence[int]) -> dict[str, dict[str, float]]:
    """The accuracy on each test set of a ridge head that learned images in each way."""
    clean, robust = pack.clean.of(places), pack.robust.of(places)
    names = sorted({str(sample.label) for sample in pack.clean.samples})
    targets, found = _columns(clean, names), {}
    for way in WAYS:
        head = head_of(way, clean.features, robust.features[:, 0], targets, len(names))
        found[way] = {
            key: _share(head.scores_refit(test.features.mean(1)), _columns(test, names))
            for key, test in pack.tests.items()
        }
    return found


def lora_accuracies(
    pack: Pack, places: Sequence[int], vision: Vision, seed: int
) -> dict[str, dict[str, float]]:
    """The accuracy of `ridge_lora` at the higher severity, without and with `robust_share`."""
    clean, robust = pack.clean.of(places), pack.robust.of(places)
    reader = KeptReader([clean, *pack.tests.values()])
    views = {sample.id: robust.features[row, 0] for row, sample in enumerate(clean.samples)}
    found = {}
    for way, share in (("two views", None), ("robust 1/10", 0.1)):
        options = {"ridge": {"robust_share": share}, "lora": {"warmup_samples": len(places) // 3}}
        learner_options = {"name": "ridge_lora", **options}
        config = config_from_dict({**vision.settings, "seed": seed, "learner": learner_options})
        learner: Any = build_learner(config, vision.backbone, vision.compute)
        learner.exact.reader = reader
        if share is not None:
            learner.exact.robust = lambda samples: torch.stack([views[each.id] for each in samples])
        for start in range(0, len(places), BATCH):
            learner.learn(Batch(start, clean.samples[start : start + BATCH]))
        found[way] = {
            key: _share(learner.logits(test.samples), _columns(test, learner.classes))
            for key, test in pack.tests.items()
            if key == "clean" or key.endswith(str(SEVERITIES[-1]))
        }
    return found


def _columns(reading: Reading, names: Sequence[str]) -> Tensor:
    return torch.tensor(
        [names.index(str(each.label)) if str(each.label) in names else -1 for each in reading.samples]
    )


def _share(scores: Tensor, targets: Tensor) -> float:
    return 100 * float((scores.argmax(1) == targets).double().mean())


def rows(found: Sequence[dict[str, dict[str, float]]]) -> Iterator[str]:
    """A row for each way: its accuracies on groups of test sets, and what it gains over the first."""
    groups = {"clean": ["clean"], "like the views": [], "others": [], "all corrupted": []}
    ways = list(found[0])
    for key in found[0][ways[0]]:
        if key != "clean":
            groups["others" if key.split()[0] in OTHERS else "like the views"].append(key)
            groups["all corrupted"].append(key)
    for way in ways:
        cells = []
        for keys in groups.values():
            mine, first = (
                np.array([np.mean([each[name][key] for key in keys]) for each in found])
                for name in (way, ways[0])
            )
            error = np.std(mine - first, ddof=1) / len(found) ** 0.5
            gain = "" if way == ways[0] else f" ({np.mean(mine - first):+.1f} ± {error:.1f})"
            cells.append(f"{np.mean(mine):.1f}{gain}")
        yield f"{way} | {' | '.join(cells)} |"


def kinds_row(found: Sequence[dict[str, dict[str, float]]], way: str) -> str:
    """The accuracy by kind of corruption, at both severities."""
    first = next(iter(found[0]))
    parts = []
    for kind in TESTED:
        pairs = [
            np.mean([each[name][key] for each in found for key in each[name] if key.startswith(kind)])
            for name in (first, way)
        ]
        parts.append(f"{kind} {pairs[0]:.1f} {pairs[1] - pairs[0]:+.1f}")
    return ", ".join(parts)


def main() -> None:
    """Print a table for each pack and learner."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--packs", default="office_caltech10,grocery81,emoji_dev")
    parser.add_argument("--learners", default="ridge,ridge_lora")
    parser.add_argument("--size", type=int, default=56)
    parser.add_argument("--train", type=int, default=600)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--cache", type=Path, help="folder for features, which are read from it another time")
    options = parser.parse_args()
    vision = Vision(options.size, options.cache)
    print(json.dumps(machine(vision.compute)))
    print("| pack | learner | learned | clean | like the views | others | all corrupted |")
    print("|---|---|---|---|---|---|---|")
    for name in options.packs.split(","):
        pack = read_pack(vision, name, options.train, options.test)
        for learner in options.learners.split(","):
            found = []
            for seed in range(DRAWS):
                chosen = np.random.default_rng(seed).permutation(len(pack.clean.samples))[: options.train]
                places = [int(place) for place in chosen]
                found.append(
                    ridge_accuracies(pack, places)
                    if learner == "ridge"
                    else lora_accuracies(pack, places, vision, seed)
                )
            for row in rows(found):
                print(f"| {name} | {learner} | {row}", flush=True)
            for way in list(found[0])[1:]:
                print(f"<!-- {name}, {learner}, {way}: {kinds_row(found, way)} -->")
    print(f"{time.process_time():.0f} s of processor time")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
