"""How far do equally good models by gradients disagree? Dropout of the adapters' weights explores them.

    python benchmarks/multiplicity.py [--pack digits] [--learner online_lora] [--models 8] [--seeds 3]
                                      [--passes 3] [--image-size 42]

A learner takes some hundred images several times, in batches of 8; online_lora has the paper's four hard
samples. Then B of its adapters is perturbed, one draw a model (see `streamcl.nn.weight_dropout`), and a model
counts as equally good where its loss on 150 held-out images is at most eps above the learner's own: these
images are used for nothing else. How far the models disagree is of 150 other images, without their labels.
All of it is done with every seed, and a row gives the mean over the seeds. The last row is of the learners
with the other seeds, each seed in turn being the reference: these are what dropout stands for.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
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
BACKBONE = {"name": "vit_small_patch14_dinov2", "weights": "fetch:vit-s-focus", "depth": 11}
RATES: dict[Perturbation, tuple[float, ...]] = {
    "bernoulli": (0.05, 0.2, 0.5),
    "gaussian": (0.2, 0.8),
}
EPSILONS = (0.01, 0.03, 0.1)
LEARNED, HELD_OUT, QUERIES, BATCH = 400, 150, 150, 8
TOLERANCE = 1e-4
"""Nats, of capacities of which three digits are printed."""


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


def taught(images: Images, options: argparse.Namespace, seed: int) -> Any:
    """Return the gradient model of a learner that has taken the stream."""
    backbone = {**BACKBONE, "image_size": options.image_size}
    learned = learner_options(options.learner)
    config = config_from_dict({"source": "digits", "seed": seed, "backbone": backbone, "learner": learned})
    compute = build_compute(config)
    learner = build_learner(config, build_vit(config, compute), compute)
    stream = images.learned * options.passes
    for start in range(0, len(stream), BATCH):
        learner.learn(Batch(start, tuple(stream[start : start + BATCH])))
    model = capabilities_of(learner).gradient_model
    if model is None or model.adapters is None:
        raise SystemExit(f"{options.learner} has no adapters that gradients train")
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


def figures(found: Multiplicity) -> tuple[float, ...]:
    """Return the columns of one seed; quantiles over the queries."""
    capacity = found.capacity
    return (
        float(found.viable_range.mean()),
        float(capacity.mean()),
        float(capacity.quantile(0.95)),
        found.ambiguity,
        found.discrepancy,
    )


def row(name: str, kept: Sequence[int], of: int, found: Sequence[Multiplicity]) -> str:
    """One row of the table; how many models are kept with each seed, and means over seeds with any."""
    counts = f"{', '.join(map(str, kept))} of {of}"
    if not found:
        return f"| {name} | {counts} | | | | |"
    spread, capacity, high, ambiguity, discrepancy = np.mean([figures(each) for each in found], axis=0)
    return (
        f"| {name} | {counts} | {spread:.3f} | {capacity:.3f} / {high:.3f} "
        f"| {ambiguity:.3f} | {discrepancy:.3f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pack", default="digits")
    parser.add_argument("--learner", default="online_lora")
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=42)
    options = parser.parse_args()
    images, references, losses = read(options.pack), list[Tensor](), list[float]()
    explorations = dict[tuple[Perturbation, float], list[list[tuple[float, Tensor]]]]()
    for seed in range(options.seeds):
        model = taught(images, options, seed)
        losses.append(loss_of(model, logits_of(model, images.held_out), images.held_out))
        references.append(logits_of(model, images.queries).softmax(dim=1))
        right = float((references[-1].argmax(dim=1) == model.targets(images.queries)).double().mean())
        print(f"seed {seed}: held-out loss {losses[-1]:.3f}, accuracy {right:.3f}", flush=True)
        for kind, rates in RATES.items():
            for rate in rates:
                near = list(explored(model, images, kind, rate, options.models))
                explorations.setdefault((kind, rate), []).append(near)
    print("| models | kept | range | capacity, mean / 95 % | ambiguity | discrepancy |")
    print("|---|---|---:|---:|---:|---:|")
    for (kind, rate), found in explorations.items():
        for epsilon in EPSILONS:
            kept = [
                [chances for loss, chances in near if loss <= own + epsilon]
                for near, own in zip(found, losses, strict=True)
            ]
            pairs = zip(kept, references, strict=True)
            measured = [
                multiplicity(torch.stack(some), reference, tolerance=TOLERANCE)
                for some, reference in pairs
                if some
            ]
            print(row(f"{kind} {rate}, eps {epsilon}", [*map(len, kept)], options.models, measured))
    others = [
        multiplicity(
            torch.stack([*references[:seed], *references[seed + 1 :]]), reference, tolerance=TOLERANCE
        )
        for seed, reference in enumerate(references)
        if options.seeds > 1
    ]
    print(row("other seeds", [options.seeds - 1] * options.seeds, options.seeds - 1, others))


if __name__ == "__main__":
    main()
