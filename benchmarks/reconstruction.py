"""Does a state still give back erased pictures, and what does image-to-image unlearning do about it?

    python benchmarks/reconstruction.py [--packs office_caltech10,digits] [--seeds 0,1,2] [--images 300]

The learner `reconstruct` learns images of all classes but two, and one class is erased. The first table
compares three erasures of that class with decoders that never saw it: `exact` subtracts its sums;
`i2i_noise` is the objective of Li et al. (arXiv 2402.00351), LoRA on the encoder's blocks, whose target is
the encoder's output for noise; `i2i_unseen` is the same with images of the classes that never occur as
targets. `not erased` has forgotten nothing. A method passes where no measure lies outside the spread of the
decoders that never saw the class, on either side. `decoder alone` is the PSNR without the adapters.
The second table has what learning an image adds to how well its hidden patches are filled in, by the number
of images learned. Packs are read from STREAMCL_DEV_DATA, else ../shared/data; `digits` comes with pip.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from torch import Tensor

from streamcl.audit.data import AuditConfig
from streamcl.audit.image_measures import psnr
from streamcl.audit.reconstruction import DecoderReferences, PictureEvaluator
from streamcl.audit.significance import MeasureResult, compare_with_references, with_outcomes
from streamcl.audit.stream_split import in_chunks
from streamcl.config.load import config_from_dict
from streamcl.events import Batch, Sample
from streamcl.factory.backbone import build_compute, build_vit
from streamcl.factory.parts import build_learner
from streamcl.heads.patch_decoder import HiddenPatches, PatchSums
from streamcl.learners.masked_patches import MaskedPatchReader
from streamcl.nn.adapted_blocks import Adapters
from streams.datasets.digits import digits
from streams.datasets.npz import npz

DATA = Path(os.environ.get("STREAMCL_DEV_DATA", "../shared/data"))
BACKBONE = {"name": "vit_small_patch14_dinov2", "weights": "fetch:vit-s-focus", "image_size": 70, "depth": 11}
PARTS = 8
PICTURES = 32
ALPHA, RANK, RATE, BATCH = 0.25, 8, 5e-3, 16
STEPS = (100, 250, 450, 700)
LEARNED = (10, 30, 100, 300)

COLUMNS = (
    *("forget PSNR", "forget SSIM", "forget FD-ViT", "forget cosine", "forget class score"),
    *("retain PSNR", "test PSNR", "decoder alone", "seconds", "fails"),
)

Targets = Callable[[Tensor, torch.Generator], Tensor]
"""Images [B, 3, S, S] whose tokens take the place of those of forgotten images [B, 3, S, S]."""


@dataclass(frozen=True)
class Split:
    """The samples of one stream: retained and forgotten ones, held-out ones, and those of unseen classes."""

    retained: list[Sample]
    forgotten: list[Sample]
    held_out: list[Sample]
    unseen: list[Sample]


def split(pack: str, images: int, seed: int) -> Split:
    """Return at most so many images to learn, one class to erase, and two that never occur."""
    train, test = digits() if pack == "digits" else npz(DATA / f"{pack}.npz")
    rng = np.random.default_rng(seed)
    taught = [train[int(i)] for i in rng.permutation(len(train))[: 2 * images]]
    names = sorted({str(each.label) for each in taught})
    gone, *unseen = rng.permutation(names)[:3].tolist()
    known = [each for each in taught if each.label not in {gone, *unseen}][:images]
    held_out = [test[int(i)] for i in rng.permutation(len(test))[: 4 * PICTURES]]
    return Split(
        known,
        [each for each in taught if each.label == gone],
        [each for each in held_out if each.label not in {gone, *unseen}][:PICTURES],
        [each for each in taught if each.label in unseen],
    )


def noise_like(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the paper's target: noise with the mean and variance that the batch has at each pixel.

    The paper clamps it to the range of pixels; prepared images are clamped to the batch's own range here.
    """
    noise = torch.randn(images.shape, generator=generator)
    drawn = images.mean(0) + images.std(0) * noise
    return drawn.clamp(images.amin().item(), images.amax().item())


class Unlearning:
    """Image-to-image unlearning (arXiv 2402.00351, eq. 3): adapters of the encoder; the decoder stays."""

    def __init__(self, reader: MaskedPatchReader, seed: int) -> None:
        self.reader, self.backbone = reader, reader.backbone
        self.generator = torch.Generator().manual_seed(seed)
        self.adapters = Adapters(self.backbone, rank=RANK, first_block=0, generator=self.generator)
        self.blocks = list(self.adapters.blocks)[: reader.block + 1]
        every = self.adapters.trainable()
        trained = [p for name, p in every.items() if int(name.split(".")[1]) <= reader.block]
        self.optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.95), weight_decay=0.05)

    def encode(self, images: Tensor, places: Tensor, blocks: Sequence[Any] | None = None) -> Tensor:
        """Return the tokens of seen patches after the last block."""
        with self.reader.compute.autocast():
            tokens = self.reader.seen_tokens(images, places)
            return self.backbone.run(tokens, 0, self.reader.block + 1, blocks)[-1].float()

    def step(self, retained: Tensor, forgotten: Tensor, targets: Tensor) -> None:
        """Take one step on prepared images."""
        places = torch.rand(len(retained), self.reader.rows * self.reader.columns, generator=self.generator)
        places = places.argsort(dim=1)[:, : self.reader.hidden].sort(dim=1).values
        with torch.no_grad():
            keep, wanted = (self.encode(each, places) for each in (retained, targets))
        kept = (self.encode(retained, places, self.blocks) - keep).square().mean()
        moved = (self.encode(forgotten, places, self.blocks) - wanted).square().mean()
        loss = kept + ALPHA * moved
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def train(self, data: Split, targets: Targets, steps: int) -> None:
        """Train the encoder: as it was on retained images, as on the targets for forgotten ones."""
        for _ in range(steps):
            retained, forgotten = (self._drawn(each) for each in (data.retained, data.forgotten))
            self.step(retained, forgotten, targets(forgotten, self.generator))

    def read(self, samples: Sequence[Sample]) -> HiddenPatches:
        """Return the hidden patches of samples, described by the adapted encoder."""
        places = self.reader.places(samples)
        images = self.backbone.prepare([each.image for each in samples])
        with torch.no_grad():
            contexts = self.reader.contexts(self.encode(images, places, self.blocks), places)
        return HiddenPatches(contexts, self.reader.all_patches(images), places)

    def _drawn(self, samples: Sequence[Sample]) -> Tensor:
        rows = torch.randint(len(samples), (BATCH,), generator=self.generator).tolist()
        return self.backbone.prepare([samples[row].image for row in rows])

    def unseen_targets(self, samples: Sequence[Sample]) -> Targets:
        """Return targets that are images of classes which the stream never had."""
        return lambda images, _: self._drawn(samples)[: len(images)]


def sums_of(learner: Any, samples: Sequence[Sample]) -> PatchSums:
    """The sums of samples, some at a time."""
    parts = [learner.reconstruction.sums_of(chunk) for chunk in in_chunks(samples)]
    total: PatchSums = reduce(add, parts)
    return total


@dataclass(frozen=True)
class Judged:
    """One method: the PSNR on forgotten and held-out images, all measures, and what it took."""

    figures: dict[str, float]
    results: tuple[MeasureResult, ...]
    alone: float
    seconds: float

    @property
    def failed(self) -> list[str]:
        """The measures outside the spread of the references, with the side."""
        return [f"{each.measure} {each.outcome}" for each in self.results if not each.passed]


class Comparison:
    """Measures every method on one stream beside decoders that never saw the erased class."""

    def __init__(self, learner: Any, data: Split, seed: int) -> None:
        self.learner, self.data = learner, data
        self.evaluator = PictureEvaluator(learner.reconstruction, learner.classifier.features, learner)
        for start in range(0, len(data.retained), 64):
            learner.classifier.learn(Batch(start, tuple(data.retained[start : start + 64])))
        order = np.random.default_rng(seed).permutation(len(data.retained))
        parts = [sums_of(learner, [data.retained[i] for i in rows]) for rows in np.array_split(order, PARTS)]
        self.sums = DecoderReferences(parts, sums_of(learner, data.forgotten))
        self.shown = {
            "forget": data.forgotten[:PICTURES],
            "retain": data.retained[:PICTURES],
            "test": data.held_out,
        }
        self.plain = {name: learner.reconstruction.read(each) for name, each in self.shown.items()}
        self.true_features = self.evaluator.features(self.plain["forget"].patches)
        self.references = [self.measure(self.plain, each) for each in self.sums.references()]
        self.retrained = self.measure(self.plain, self.sums.retained)

    def measure(self, pictures: dict[str, HiddenPatches], sums: PatchSums) -> dict[str, float]:
        """Every measure of forgotten images, and the PSNR of the others."""
        decoder = self.learner.reconstruction.decoder
        weights = decoder.weights(sums)
        pixels = {name: decoder.decode(each.contexts, weights) for name, each in pictures.items()}
        found = self.evaluator.measure(pictures["forget"], pixels["forget"], self.true_features)
        others = {
            f"{name} PSNR": self.evaluator.signal(pictures[name], pixels[name]) for name in ("retain", "test")
        }
        return {**{f"forget {name}": value for name, value in found.items()}, **others}

    def judge(self, make: Callable[[], tuple[dict[str, HiddenPatches], PatchSums]]) -> Judged:
        """A method's measures beside the references; `make` carries it out."""
        began = time.perf_counter()
        pictures, sums = make()
        seconds = time.perf_counter() - began
        figures = self.measure(pictures, sums)
        results = with_outcomes(
            [
                compare_with_references(
                    name,
                    np.array([value]),
                    np.array([each[name] for each in self.references]),
                    centre=self.retrained[name],
                )
                for name, value in figures.items()
            ],
            AuditConfig().false_alarm_rate,
        )
        alone = self.measure(self.plain, sums)["forget PSNR"]
        return Judged(figures, results, alone, seconds)

    def methods(self, seed: int) -> Iterator[tuple[str, Judged]]:
        """Every method, judged; those that train after each of STEPS."""
        whole = self.sums.retained + self.sums.forgotten
        yield "not erased", self.judge(lambda: (self.plain, whole))
        yield "exact", self.judge(lambda: (self.plain, whole - self.sums.forgotten))
        for name in ("i2i_noise", "i2i_unseen"):
            unlearning = Unlearning(self.learner.reconstruction.reader, seed)
            targets = noise_like if name == "i2i_noise" else unlearning.unseen_targets(self.data.unseen)

            def trained(
                steps: int, unlearning: Unlearning = unlearning, targets: Targets = targets
            ) -> tuple[dict[str, HiddenPatches], PatchSums]:
                unlearning.train(self.data, targets, steps)
                return {kind: unlearning.read(each) for kind, each in self.shown.items()}, whole

            for before, steps in pairwise((0, *STEPS)):
                yield f"{name}, {steps} steps", self.judge(partial(trained, steps - before))


def memorised(learner: Any, data: Split) -> dict[int, tuple[float, float]]:
    """By the number of images learned: PSNR of images that were not learned, and of those that were."""
    decoder, found = learner.reconstruction.decoder, {}
    held_out = learner.reconstruction.read(data.held_out)
    for count in LEARNED:
        if count <= len(data.retained):
            weights = decoder.weights(sums_of(learner, data.retained[:count]))
            kinds = (held_out, learner.reconstruction.read(data.retained[: min(count, PICTURES)]))
            signals = [
                float(psnr(decoder.decode(each.contexts, weights), each.pixels).mean()) for each in kinds
            ]
            found[count] = (signals[0], signals[1])
    return found


def build(seed: int) -> Any:
    """A learner that has learned nothing."""
    config = config_from_dict(
        {"source": "digits", "backbone": BACKBONE, "learner": "reconstruct", "seed": seed, "batch": 32}
    )
    compute = build_compute(config)
    return build_learner(config, build_vit(config, compute), compute), compute


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packs", default="office_caltech10,digits")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--images", type=int, default=300)
    arguments = parser.parse_args()
    memory: dict[str, dict[int, list[tuple[float, float]]]] = {}
    print(
        f"| pack | seed | method | {' | '.join(COLUMNS)} |\n|---|---:|---|{'---:|' * (len(COLUMNS) - 1)}---|"
    )
    for pack in arguments.packs.split(","):
        for seed in map(int, arguments.seeds.split(",")):
            learner, compute = build(seed)
            data = split(pack, arguments.images, seed)
            for name, judged in Comparison(learner, data, seed).methods(seed):
                shown = " | ".join(f"{value:.3f}" for value in judged.figures.values())
                why = ", ".join(judged.failed) or "nothing"
                row = f"{shown} | {judged.alone:.3f} | {judged.seconds:.1f} | {why}"
                print(f"| {pack} | {seed} | {name} | {row} |", flush=True)
            for count, pair in memorised(learner, data).items():
                memory.setdefault(pack, {}).setdefault(count, []).append(pair)
    print("\n| pack | images learned | not learned, dB | learned, dB |\n|---|---:|---:|---:|")
    for pack, by_count in memory.items():
        for count, signals in by_count.items():
            others, own = np.mean(signals, axis=0)
            print(f"| {pack} | {count} | {others:.2f} | {own:.2f} |")
    print(machine(compute))


if __name__ == "__main__":
    main()
