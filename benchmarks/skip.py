"""Skipping what is known while adapters are trained (KAKURENBO, arXiv 2310.10102): tried, and left out.

    python benchmarks/skip.py [--pack digits] [--images 1200] [--seeds 3] [--tiny]

Of the labelled samples of each batch up to MOST are left out of the adapters' steps of `ridge_lora`: those of
the least loss that the frozen branch names right with a confidence of CONFIDENCE or more. They stay in all
sums. Adapters are trained on the first two thirds of the images. For each seed the table has the accuracy on
400 test images with and without skipping, how many samples were skipped, and what comes of the same stream
without one of these: of how many others it changes whether they are skipped, and by how much the adapted
weights differ, as a share of the largest change that training made. Were that 0, a skipped sample could be
erased exactly from the sums alone. `--tiny` takes a small random transformer.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from stability import BACKBONE, DATA
from torch import Tensor

from streamcl.config.load import config_from_dict
from streamcl.events import Batch, Sample
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.factory.parts import build_learner
from streamcl.learners.step import PreparedStep
from streamcl.nn.backbone import Backbone
from streams.datasets.digits import digits
from streams.datasets.npz import npz

CONFIDENCE, MOST = 0.7, 0.3
SIZE = 50
TINY = {
    "name": "vit_tiny_patch16_224",
    "weights": "none",
    "image_size": 32,
    "args": {"patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 2},
}


@dataclass
class Skipping:
    """Leaves samples out of the steps of a learner's adapters.

    skipped: the ids of those left out. most: the largest share of a batch.
    """

    learner: Any
    most: float
    skipped: list[str] = field(default_factory=list)
    _step: PreparedStep | None = None

    def __post_init__(self) -> None:
        self._prepare, self._adapt = self.learner.exact.prepared, self.learner.adapted.adapt
        self.learner.exact.prepared, self.learner.adapted.adapt = self.prepared, self.adapt

    def prepared(self, *arguments: Any) -> PreparedStep:
        """Note what is predicted of a batch before it is learned."""
        self._step = self._prepare(*arguments)
        return self._step

    def adapt(self, views: Sequence[Tensor], targets: Tensor, classes: int, _: object = None) -> bool:
        """Train the adapters on the samples that are not skipped."""
        step = self._step
        assert step is not None
        known = []
        for place, sample in enumerate(step.batch.labelled):
            guess = step.predictions[step.rows[place]]
            if guess.label == sample.label and guess.confidence >= CONFIDENCE:
                known.append((step.losses[place], place))
        left_out = {place for _, place in sorted(known)[: int(self.most * len(targets))]}
        self.skipped += [step.batch.labelled[place].id for place in sorted(left_out)]
        kept = [place for place in range(len(targets)) if place not in left_out]
        self.learner.adapted._left -= len(left_out)  # adapters are frozen at the same place of the stream
        return bool(self._adapt([view[kept] for view in views], targets[kept], classes))


def run(backbone: Backbone, config: Any, samples: Sequence[Sample | None], most: float) -> Skipping:
    """Learn the samples in batches of SIZE; None is a place whose sample was refused."""
    learner: Any = build_learner(config, backbone, build_compute(config))
    skipping = Skipping(learner, most)
    for start in range(0, len(samples), SIZE):
        batch = samples[start : start + SIZE]
        learner.learn(Batch(start, tuple(sample for sample in batch if sample is not None)))
    return skipping


def accuracy(learner: Any, test: Sequence[Sample]) -> float:
    """The share of test images that the learner names right."""
    parts = [test[start : start + 100] for start in range(0, len(test), 100)]
    pairs = [pair for part in parts for pair in zip(learner.predict(part), part, strict=True)]
    return float(np.mean([guess.label == sample.label for guess, sample in pairs]))


def change(one: Skipping, other: Skipping) -> float:
    """The largest difference of an adapted weight, relative to the largest change that training made."""
    pairs = zip(*(each.learner.adapted.adapters.layers for each in (one, other)), strict=True)
    return max(
        float((a.adapted_rows() - b.adapted_rows()).abs().max() / a.merged_delta().abs().max())
        for a, b in pairs
    )


def row(backbone: Backbone, config: Any, data: tuple[Any, Any], images: int) -> list[str]:
    """The cells of the seed in a configuration."""
    random = np.random.default_rng(config.seed)
    chosen, tested = (random.permutation(len(part)) for part in data)
    samples: list[Sample | None] = [data[0][int(i)] for i in chosen[:images]]
    test = [data[1][int(i)] for i in tested[:400]]
    plain, skipping = (run(backbone, config, samples, most) for most in (0.0, MOST))
    cells = [f"{accuracy(each.learner, test):.3f}" for each in (plain, skipping)]
    cells.append(str(len(skipping.skipped)))
    if not skipping.skipped:
        return [*cells, "", ""]
    gone = skipping.skipped[len(skipping.skipped) // 4]
    rest = [None if sample is None or sample.id == gone else sample for sample in samples]
    without = run(backbone, config, rest, MOST)
    decided = {*skipping.skipped} ^ {*without.skipped, gone}
    return [*cells, str(len(decided)), f"{change(skipping, without):.3f}"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pack", default="digits")
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a small random transformer")
    arguments = parser.parse_args()
    data = digits() if arguments.pack == "digits" else npz(DATA / f"{arguments.pack}.npz")
    print("| seed | accuracy | with skipping | skipped | others that one decides | adapters differ |")
    print("|---|---|---|---|---|---|")
    backbone: Backbone | None = None
    for seed in range(arguments.seeds):
        settings = {"source": "digits", "backbone": TINY if arguments.tiny else BACKBONE, "seed": seed}
        learner = {"name": "ridge_lora", "lora": {"warmup_samples": 2 * arguments.images // 3}}
        config = config_from_dict({**settings, "learner": learner})
        backbone = backbone or build_vit(config, build_compute(config))
        print(f"| {seed} | {' | '.join(row(backbone, config, data, arguments.images))} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
