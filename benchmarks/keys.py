"""The learner `keys` beside `ridge`: accuracy, and the pause of an erasure by traces.

    python benchmarks/keys.py [--packs office_caltech10,grocery81,emoji_dev] [--seeds 3] [--cache DIR]

Every seed has other directions, and learns another four fifths of at most 2,000 images of a pack; the head
predicts 1,000 test images. The erasure takes 32 samples out by their traces; its milliseconds are processor
time. The sums are then compared, to the bit, with those of a head that never saw the samples.

`counts` and `averages` are closer to the paper (arXiv 2207.11240), with counts in place of trained values:
each of 256 random projections to 12 numbers has 256 random keys, 256 bytes a sample, and a class is scored by
the summed log p(key | class), or the mean p(class | key). Packs are read from STREAMCL_DEV_DATA, else
../shared/data; `digits` comes with pip.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from stability import BACKBONE, Split, read
from torch import Tensor

from streamcl.config.load import config_from_dict
from streamcl.events import Sample
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.factory.parts import build_learner
from streamcl.heads.key_pairs import KeyPairsHead
from streamcl.heads.ridge import RidgeHead
from streamcl.learners.class_index import ClassIndex
from streamcl.learners.keys import PROBE_IMAGES, KeyTraces, pack_keys
from streamcl.learners.ridge_options import RidgeOptions
from streamcl.learners.statistics import ClosedFormStatistics
from streamcl.nn.synthetic_images import synthetic_images

LEARNED_SHARE = 0.8
ERASED = 32
HEADS, KEYS, NUMBERS = 256, 256, 12
"""Of the keys of the paper's kind."""
SMOOTHING = {"counts": 0.03, "averages": 1.0}
"""The best of 0.03 to 1 on these packs."""


@dataclass(frozen=True)
class Result:
    """One head of one seed: test accuracy, and the seconds of an erasure; NaN where none was made."""

    accuracy: float
    seconds: float = float("nan")


@cache
def probe() -> Tensor:
    """Features [N, D] of synthetic images."""
    config = config_from_dict({"source": "digits", "backbone": BACKBONE, "learner": "ridge"})
    compute = build_compute(config)
    learner: Any = build_learner(config, build_vit(config, compute), compute)
    images = synthetic_images(PROBE_IMAGES, BACKBONE["image_size"])  # type: ignore[arg-type]
    return learner.features([Sample(f"synthetic-{i}", image) for i, image in enumerate(images)])  # type: ignore[no-any-return]


def learned_part(split: Split, seed: int) -> tuple[Tensor, Tensor]:
    """The rows [N, D] and classes [N] that a seed learns."""
    chosen = torch.randperm(len(split.x), generator=torch.Generator().manual_seed(seed))
    chosen = chosen[: int(LEARNED_SHARE * len(split.x))]
    return split.x[chosen], split.y[chosen]


def learned(head: RidgeHead, x: Tensor, y: Tensor, classes: int) -> RidgeHead:
    """Return the head, which has learned rows [N, D] of classes [N]."""
    head.grow(classes)
    head.update(x, y)
    return head


def with_ridge(split: Split, seed: int, *, keys: int | None) -> Result:
    """Learn by a ridge head on features or on keys, predict and, with keys, erase."""
    options: dict[str, Any] = RidgeOptions().model_dump(
        include={"variance_ridge", "gcv_margin", "trace_ridge"}
    )
    width = split.x.shape[1]

    def made() -> RidgeHead:
        if keys is None:
            return RidgeHead(width, **options)
        return KeyPairsHead(width, keys=keys, probe=probe, seed=seed, **options)

    x, y = learned_part(split, seed)
    head = learned(made(), x, y, split.classes)
    accuracy = share(head.scores_refit(split.x_test), split)
    if keys is None:
        return Result(accuracy)
    names = [str(label) for label in range(split.classes)]
    statistics = ClosedFormStatistics((head,), lambda _: (), ClassIndex(names), [])
    traces = pack_keys(head.statistic_rows(x[:ERASED]).numpy())
    began = time.process_time()
    statistics.subtract(KeyTraces(statistics).of_traces(traces, [names[int(label)] for label in y[:ERASED]]))
    seconds = time.process_time() - began
    never = learned(made(), x[ERASED:], y[ERASED:], split.classes)
    if head.statistics.relative_error(never.statistics) != 0:
        raise RuntimeError("what an erasure leaves differs from what never saw the samples")
    return Result(accuracy, seconds)


def with_counts(split: Split, seed: int, *, rule: str) -> Result:
    """Learn by counts of single keys of the paper's kind, and predict."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.randn(split.x.shape[1], HEADS * NUMBERS, generator=draw)
    centre = probe().mean(dim=0)
    spread = ((probe() - centre) @ directions).std(dim=0).mean()
    points = torch.randn(HEADS, KEYS, NUMBERS, generator=draw) * spread

    def nearest(features: Tensor) -> Tensor:
        along = ((features - centre) @ directions).view(-1, HEADS, NUMBERS)
        far = points.square().sum(dim=2) - 2 * torch.einsum("nhs,hks->nhk", along, points)
        return far.argmin(dim=2)  # [N, HEADS]

    x, y = learned_part(split, seed)
    table = torch.zeros(HEADS, KEYS, split.classes)
    for head, keys in enumerate(nearest(x).T):
        table[head].index_put_((keys, y), torch.ones(()), accumulate=True)
    a = SMOOTHING[rule]
    if rule == "counts":
        values = ((table + a) / (table[0].sum(dim=0) + a * KEYS)).log()
    else:
        values = (table + a / split.classes) / (table.sum(dim=2, keepdim=True) + a)
    scores = sum(values[head][keys] for head, keys in enumerate(nearest(split.x_test).T))
    return Result(share(torch.as_tensor(scores), split))


def share(scores: Tensor, split: Split) -> float:
    """The accuracy of scores [N, C] of the test images."""
    return float((scores.argmax(dim=1) == split.y_test).double().mean())


CONTESTANTS: dict[str, Callable[[Split, int], Result]] = {
    "ridge": lambda split, seed: with_ridge(split, seed, keys=None),
    "keys: 1024 (512 bytes)": lambda split, seed: with_ridge(split, seed, keys=1024),
    "keys: 512 (256 bytes)": lambda split, seed: with_ridge(split, seed, keys=512),
    "keys: 256 (128 bytes)": lambda split, seed: with_ridge(split, seed, keys=256),
    "counts (256 bytes)": lambda split, seed: with_counts(split, seed, rule="counts"),
    "averages (256 bytes)": lambda split, seed: with_counts(split, seed, rule="averages"),
}


def cell(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, in per cent."""
    return f"{100 * mean(values):.1f} ± {100 * stdev(values) if values[1:] else 0:.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--packs", default="office_caltech10,grocery81,emoji_dev")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="folder in which features are kept")
    arguments = parser.parse_args()
    packs = arguments.packs.split(",")
    data = read(packs, arguments.cache)
    print(f"| | {' | '.join(packs)} | erasure of {ERASED}, ms |\n|---|{'---|' * (len(packs) + 1)}")
    for name, measure in CONTESTANTS.items():
        found = {pack: [measure(data[pack], seed) for seed in range(arguments.seeds)] for pack in packs}
        accuracies = [cell([each.accuracy for each in found[pack]]) for pack in packs]
        pause = 1000 * median(each.seconds for results in found.values() for each in results)
        shown = "" if pause != pause else f"{pause:.0f}"
        print(f"| {name} | {' | '.join(accuracies)} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
