"""How far do equally good models by gradients disagree? Dropout of the adapters' weights explores them.

    python benchmarks/multiplicity.py [--pack digits] [--learner online_lora] [--models 8] [--retrained 3]

A learner takes a stream of at most 400 images; online_lora has the paper's four hard samples. Then B of its
adapters is perturbed, one draw a model (see `streamcl.nn.weight_dropout`), and a model counts as equally good
where its loss on 150 held-out images is at most eps above the learner's own: these images are used for
nothing else. How far the models disagree is of 150 other images, without their labels. The last row is of
learners that took the same stream with other seeds, which is what dropout stands for.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from published_learner import learner_options
from torch import Tensor
from torch.nn import functional as F

from streamcl.capabilities.declaration import capabilities_of
from streamcl.config.load import config_from_dict
from streamcl.evaluation.multiplicity import Multiplicity, multiplicity
from streamcl.events import Batch, Sample
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.factory.parts import build_learner
from streamcl.nn.weight_dropout import Perturbation, perturbed
from streams.datasets.digits import digits
from streams.datasets.npz import npz

DATA = Path(os.environ.get("STREAMCL_DEV_DATA", "../shared/data"))
BACKBONE = {"name": "vit_small_patch14_dinov2", "weights": "fetch:vit-s-focus", "image_size": 70, "depth": 11}
RATES: dict[Perturbation, tuple[float, ...]] = {
    "bernoulli": (0.05, 0.2),
    "gaussian": (0.2, 0.8),
}
EPSILONS = (0.01, 0.05)
LEARNED, HELD_OUT, QUERIES, BATCH = 400, 150, 150, 32


@dataclass(frozen=True)
class Images:
    """Samples to learn, held-out ones, and those that are predicted."""

    learned: list[Sample]
    held_out: list[Sample]
    queries: list[Sample]


def read(pack: str) -> Images:
    """Return the images of a pack, in an order of their own."""
    train, test = digits() if pack == "digits" else npz(DATA / f"{pack}.npz")
    chosen = [np.random.default_rng(0).permutation(len(part)) for part in (train, test)]
    learned = [train[int(i)] for i in chosen[0][:LEARNED]]
    known = {sample.label for sample in learned}
    drawn = (test[int(i)] for i in chosen[1])
    others = list(islice((each for each in drawn if each.label in known), HELD_OUT + QUERIES))
    return Images(learned, others[: len(others) // 2], others[len(others) // 2 :])


def taught(images: Images, name: str, seed: int) -> Any:
    """Return the gradient model of a learner that has taken the stream."""
    config = config_from_dict(
        {"source": "digits", "seed": seed, "backbone": BACKBONE, "learner": learner_options(name)}
    )
    compute = build_compute(config)
    learner = build_learner(config, build_vit(config, compute), compute)
    for start in range(0, len(images.learned), BATCH):
        learner.learn(Batch(start, tuple(images.learned[start : start + BATCH])))
    model = capabilities_of(learner).gradient_model
    if model is None or model.adapters is None:
        raise SystemExit(f"{name} has no adapters that gradients train")
    return model


def logits_of(model: Any, samples: list[Sample]) -> Tensor:
    """Logits [N, C] of samples, some at a time."""
    with torch.no_grad():
        chunks = [samples[start : start + 50] for start in range(0, len(samples), 50)]
        return torch.cat([model.head(model.features(chunk)) for chunk in chunks]).double()


def loss_of(model: Any, logits: Tensor, samples: list[Sample]) -> float:
    """Mean loss in nats, over all samples alike."""
    return float(F.cross_entropy(logits, model.targets(samples)))


def explored(
    model: Any, images: Images, kind: Perturbation, rate: float, count: int
) -> Iterator[tuple[float, Tensor]]:
    """Yield the held-out loss of each model nearby, and its probabilities [N, C] of the queries' classes."""
    both, weights = [*images.held_out, *images.queries], [layer.lora_B for layer in model.adapters.layers]
    for seed in range(count):
        with perturbed(weights, kind, rate, torch.Generator().manual_seed(seed)):
            logits = logits_of(model, both)
        held = logits[: len(images.held_out)]
        yield loss_of(model, held, images.held_out), logits[len(images.held_out) :].softmax(dim=1)


def row(name: str, kept: int, of: int, found: Multiplicity) -> str:
    """One row of the table; quantiles over the queries."""
    capacity, spread = found.capacity, found.viable_range
    return (
        f"| {name} | {kept} of {of} | {float(spread.mean()):.3f} | {float(found.score_variance.mean()):.4f} "
        f"| {float(capacity.mean()):.3f} / {float(capacity.quantile(0.95)):.3f} "
        f"| {found.ambiguity:.3f} | {found.discrepancy:.3f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pack", default="digits")
    parser.add_argument("--learner", default="online_lora")
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--retrained", type=int, default=3)
    arguments = parser.parse_args()
    images = read(arguments.pack)
    model = taught(images, arguments.learner, 0)
    held = logits_of(model, images.held_out)
    own, reference = loss_of(model, held, images.held_out), logits_of(model, images.queries).softmax(dim=1)
    right = float((reference.argmax(dim=1) == model.targets(images.queries)).double().mean())
    print(f"{arguments.pack}, {arguments.learner}: held-out loss {own:.3f}, accuracy {right:.3f}")
    print("| models | kept | range | variance | capacity, mean / 95 % | ambiguity | discrepancy |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for kind, rates in RATES.items():
        for rate in rates:
            found = list(explored(model, images, kind, rate, arguments.models))
            for epsilon in EPSILONS:
                kept = [chances for loss, chances in found if loss <= own + epsilon]
                if kept:
                    name = f"{kind} {rate}, eps {epsilon}"
                    print(
                        row(name, len(kept), len(found), multiplicity(torch.stack(kept), reference)),
                        flush=True,
                    )
    retrained = [
        logits_of(taught(images, arguments.learner, seed), images.queries).softmax(dim=1)
        for seed in range(1, arguments.retrained + 1)
    ]
    if retrained:
        found_by_seed = multiplicity(torch.stack(retrained), reference)
        print(row("other seeds", len(retrained), len(retrained), found_by_seed), flush=True)


if __name__ == "__main__":
    main()
